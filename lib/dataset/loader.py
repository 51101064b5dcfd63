"""The batches of an epoch or of a split: which images they have, and which of them this rank reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol

import numpy as np

from lib.dataset.pipeline import Batch, BatchPipeline
from lib.dataset.reader import BatchReader, BatchRequest
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError


class EpochSampler(Protocol):
    """What a sampler is to a loader."""

    def epoch_rows(self, epoch: int) -> np.ndarray: ...


class TrainLoader:
    """The training batches of an epoch, starting at any of them: of each batch, this rank's share.

    The partial last batch is dropped; a set smaller than a batch is one batch. What a slot holds does not depend on the
    number of ranks.

    Attributes:
        batch_size: slots a step, over all ranks.
        local_batch_size: slots a step of this rank: contiguous ones, and pairs (slot XOR 1) stay on one rank unless
            batches are odd.
        steps_per_epoch: the same on every rank.
    """

    def __init__(
        self,
        reader: BatchReader,
        plan: EpochSampler,
        num_slots: int,
        batch_size: int,
        *,
        sizes: Mapping[int, int] | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
        **workers,
    ) -> None:
        """Prepare the batches of any epoch.

        Args:
            num_slots, batch_size: slots an epoch and a step, over all ranks.
            sizes: epoch (from 0) -> side of the images from then on, pixels; before the first of them, that of the
                reader's transform.

        Raises:
            UserError: a batch has too few images for the ranks, or there is too little shared memory.
        """
        self.epoch_rows = plan
        self.batch_size = min(batch_size, num_slots)
        self.steps_per_epoch = num_slots // self.batch_size
        _check_ranks(self.batch_size, num_slots, group)
        self._share = group.shard_pairs(self.batch_size)
        self.local_batch_size = self._share.stop - self._share.start
        self._sizes = {0: reader.transform.size, **(sizes or {})}
        self._feed = BatchPipeline(reader, self.local_batch_size, max(self._sizes.values()), **workers)

    def size_at(self, epoch: int) -> int:
        """Return the side of an epoch's images, pixels."""
        return self._sizes[max(first for first in self._sizes if first <= epoch)]

    def first_slot(self, step: int) -> int:
        """Return the slot of the epoch at which this rank's share of a step begins."""
        return step * self.batch_size + self._share.start

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first_step` on, on the device."""
        rows, size = self.epoch_rows.epoch_rows(epoch), self.size_at(epoch)
        starts = map(self.first_slot, range(first_step, self.steps_per_epoch))
        return self._feed(BatchRequest(epoch, start, rows[start : start + self.local_batch_size], size) for start in starts)


def _check_ranks(batch_size: int, num_slots: int, group: ProcessGroup) -> None:
    if batch_size // (1 if batch_size % 2 else 2) >= group.world_size:
        return
    if num_slots < 2 * group.world_size:
        raise UserError(
            f'{num_slots} training images are too few for {group.world_size} ranks, of which each takes a part of '
            f'every batch: start at most {max(1, num_slots // 2)}'
        )
    raise UserError(
        f'TRAIN.BATCH_SIZE: steps of {batch_size} images leave some of the {group.world_size} ranks with none; '
        f'--TRAIN_BATCH_SIZE {2 * group.world_size} gives each two, the fewest for BatchNorm'
    )


class EvalLoader:
    """Every row once, in order; the last batch may be smaller. Each rank has a contiguous part of the rows, maybe none.

    Attributes:
        num_images: rows, over all ranks.
        rows: those of this rank.
        max_batches: the most batches that any rank has.
    """

    def __init__(
        self,
        reader: BatchReader,
        num_images: int,
        batch_size: int,
        *,
        group: ProcessGroup = SINGLE_PROCESS,
        **workers,
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.rows = group.shard(num_images)
        self._num_rows = [_length(replace(group, rank=rank).shard(num_images)) for rank in range(group.world_size)]
        self.max_batches = -(-max(self._num_rows) // batch_size)
        self._num_looks = 1 + len(reader.others)
        largest = max(transform.size for transform in (reader.transform, *reader.others))
        self._feed = BatchPipeline(reader, min(batch_size, _length(self.rows)), largest, **workers)

    def batch_sizes(self, number: int) -> list[int]:
        """Return how many images each rank has in its batch of that number (from 0); 0 after its last one."""
        return [max(0, min(self.batch_size, rows - number * self.batch_size)) for rows in self._num_rows]

    def __len__(self) -> int:
        """Batches of this rank."""
        return -(-_length(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(self.batch_slices())

    def batch_slices(self) -> list[slice]:
        """Return the rows of each batch of this rank."""
        starts = range(self.rows.start, self.rows.stop, self.batch_size)
        return [slice(start, min(start + self.batch_size, self.rows.stop)) for start in starts]

    def batches(self, parts: Sequence[slice]) -> Iterator[Batch]:
        """Yield some of the batches, each of the rows that it always has."""
        return (first for first, *_ in self._looks(parts, 1))

    def views(self, parts: Sequence[slice]) -> Iterator[list[Batch]]:
        """Yield some of the batches, each as every transform of the reader sees it, in their order."""
        return self._looks(parts, self._num_looks)

    def _looks(self, parts: Sequence[slice], num_looks: int) -> Iterator[list[Batch]]:
        if not parts:
            return  # without starting workers
        requests = (
            BatchRequest(0, rows.start, np.arange(rows.start, rows.stop), look=look)
            for rows in parts
            for look in range(num_looks)
        )
        batches = self._feed(requests)
        for _ in parts:
            yield list(islice(batches, num_looks))


def _length(part: slice) -> int:
    return part.stop - part.start
