"""Data loaders: the batches of a training epoch or of a split, and the part of each batch that this rank reads.

Batches are of images, or of stored features in their place.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lib.dataset.features import FeatureReader
from lib.dataset.pipeline import Batch, BatchPipeline
from lib.dataset.reader import ALL_VIEWS, BatchReader, BatchRequest
from lib.dataset.sampler import EpochSampler
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup


class BatchTooSmall(Exception):
    """A batch has too few images to give each rank a part.

    Attributes:
        batch_size: slots per step, over all ranks.
        num_slots: slots per epoch.
        world_size: number of ranks.
    """

    def __init__(self, batch_size: int, num_slots: int, world_size: int) -> None:
        super().__init__(f'a batch of {batch_size} images is too small for {world_size} ranks')
        self.batch_size, self.num_slots, self.world_size = batch_size, num_slots, world_size


class TrainLoader:
    """The training batches of an epoch from any step on; of each batch, this rank's part.

    The partial last batch is dropped; a set smaller than a batch is one batch. The content of a slot does not depend
    on the number of ranks.

    Attributes:
        sampler: the rows of each epoch.
        batch_size: slots per step, over all ranks.
        local_batch_size: slots per step of this rank. They are contiguous; pairs (slot XOR 1) stay on one rank unless
            the batch size is odd.
        steps_per_epoch: the same on every rank.
    """

    def __init__(
        self,
        reader: BatchReader | FeatureReader,
        sampler: EpochSampler,
        num_slots: int,
        batch_size: int,
        *,
        sizes: Mapping[int, int] | None = None,
        weights: np.ndarray | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
        **pipeline_options: Any,
    ) -> None:
        """Prepare the batches of all epochs.

        Args:
            num_slots, batch_size: slots per epoch and per step, over all ranks.
            sizes: epoch (from 0) -> image size in pixels from then on; before the first of them, the size of the
                reader's transform.
            weights: (num_rows,) float32 weights of the images in the loss; None: all 1.
            pipeline_options: keyword arguments of BatchPipeline; none with features.

        Raises:
            BatchTooSmall: some ranks would have no image.
            SharedMemoryFull: the batches do not fit into shared memory.
        """
        self.sampler = sampler
        self._weights = weights
        self.batch_size = min(batch_size, num_slots)
        self.steps_per_epoch = num_slots // self.batch_size
        if self.batch_size // (1 if self.batch_size % 2 else 2) < group.world_size:
            raise BatchTooSmall(self.batch_size, num_slots, group.world_size)
        self._shard = group.shard_pairs(self.batch_size)
        self.local_batch_size = self._shard.stop - self._shard.start
        self._sizes = {0: reader.sizes[0], **(sizes or {})}
        self._pipeline = _open_pipeline(reader, self.local_batch_size, max(self._sizes.values()), **pipeline_options)

    def size_at(self, epoch: int) -> int:
        """Return the image size of an epoch, in pixels."""
        return self._sizes[max(first for first in self._sizes if first <= epoch)]

    def first_slot(self, step: int) -> int:
        """Return the slot of the epoch at which this rank's part of a step begins."""
        return step * self.batch_size + self._shard.start

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first_step` on, on the device."""
        rows, size, length = self.sampler.epoch_rows(epoch), self.size_at(epoch), self.local_batch_size
        starts = map(self.first_slot, range(first_step, self.steps_per_epoch))
        requests = (BatchRequest(epoch, start, rows[start : start + length], size) for start in starts)
        return _weighted(self._pipeline(requests), self._weights)


class FullBatchLoader:
    """The whole training set as the one step of every epoch, which reads it in blocks as often as it needs.

    Attributes:
        batch_size: stored features, over all views and ranks.
        local_batch_size: those of this rank.
        steps_per_epoch: 1.
    """

    steps_per_epoch = 1

    def __init__(
        self,
        reader: FeatureReader,
        rows: np.ndarray,
        block_size: int,
        *,
        weights: np.ndarray | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        """Prepare for reading `rows` of all views, at most `block_size` at a time; `weights` as in TrainLoader.

        Raises:
            BatchTooSmall: some ranks would have no image.
        """
        num_views = len(reader.views)
        if len(rows) < group.world_size:
            raise BatchTooSmall(len(rows), len(rows), group.world_size)
        self._reader, self._block_size, self._weights = reader, block_size, weights
        self._shard = group.shard(len(rows))
        self._rows = np.sort(rows)[self._shard]
        self.batch_size = num_views * len(rows)
        self.local_batch_size = num_views * len(self._rows)

    def first_slot(self, step: int) -> int:
        """Return 0: nothing that is drawn depends on the slot."""
        return 0

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield one batch without images unless `first_step` is 1; it names those that cannot be decoded."""
        if first_step:
            return
        used = set(self._rows.tolist())
        bad = [image for view in self._reader.views for image in view.bad if image[0] in used]
        none = torch.empty(0, dtype=torch.int64)
        yield Batch(torch.empty(0, 0), none, none.bool(), none, bad)

    def blocks(self) -> Iterator[Batch]:
        """Yield the features of this rank, view after view, on the device."""
        starts = range(0, len(self._rows), self._block_size)
        requests = (
            BatchRequest(view, self._shard.start + start, self._rows[start : start + self._block_size])
            for view in range(len(self._reader.views))
            for start in starts
        )
        return _weighted(self._reader(requests), self._weights)


class EvalLoader:
    """Every row once, in order; the last batch may be smaller. Each rank has contiguous rows, maybe none.

    With `whole_batches`, each batch has the same images with any number of ranks, so that values that depend on the
    batch in their last bits are the same, too; without, all ranks have equally many images.

    Attributes:
        num_images: rows, over all ranks.
        batch_size: images per batch of a rank.
        rows: those of this rank.
        max_batches: the largest number of batches of any rank.
    """

    def __init__(
        self,
        reader: BatchReader | FeatureReader,
        num_images: int,
        batch_size: int,
        *,
        whole_batches: bool = False,
        epoch: int = 0,
        group: ProcessGroup = SINGLE_PROCESS,
        **pipeline_options: Any,
    ) -> None:
        """Prepare the batches.

        Args:
            epoch: epoch whose random numbers a random transform uses; the slot of an image is its row.
            pipeline_options: keyword arguments of BatchPipeline; none with features.

        Raises:
            SharedMemoryFull: the batches do not fit into shared memory.
        """
        self.num_images = num_images
        self.batch_size = batch_size
        ranks = [replace(group, rank=rank) for rank in range(group.world_size)]
        if whole_batches:
            shards = [rows_of_batches(rank, num_images, batch_size) for rank in ranks]
        else:
            shards = [rank.shard(num_images) for rank in ranks]
        self.rows = shards[group.rank]
        self._num_rows = [_length(shard) for shard in shards]
        self.max_batches = -(-max(self._num_rows) // batch_size)
        self._epoch = epoch
        batch_size = min(batch_size, _length(self.rows))
        self._pipeline = _open_pipeline(reader, batch_size, max(reader.sizes), **pipeline_options)

    def batch_sizes(self, number: int) -> list[int]:
        """Return the number of images of each rank in batch `number` (from 0); 0 after its last batch."""
        return [max(0, min(self.batch_size, rows - number * self.batch_size)) for rows in self._num_rows]

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        return -(-_length(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(self.batch_slices())

    def batch_slices(self) -> list[slice]:
        """Return the rows of each batch of this rank."""
        starts = range(self.rows.start, self.rows.stop, self.batch_size)
        return [slice(start, min(start + self.batch_size, self.rows.stop)) for start in starts]

    def batches(self, slices: Sequence[slice]) -> Iterator[Batch]:
        """Yield some of the batches, given by their rows, under the reader's first transform."""
        return self._batches(slices, 0)

    def views(self, slices: Sequence[slice]) -> Iterator[list[Batch]]:
        """Yield some of the batches, each as a list with one batch per transform of the reader."""
        return ([batch, *batch.more_views] for batch in self._batches(slices, ALL_VIEWS))

    def _batches(self, slices: Sequence[slice], view: int) -> Iterator[Batch]:
        if slices:  # otherwise without starting workers
            requests = (
                BatchRequest(self._epoch, rows.start, np.arange(rows.start, rows.stop), view=view) for rows in slices
            )
            yield from self._pipeline(requests)


def _open_pipeline(
    reader: BatchReader | FeatureReader, batch_size: int, largest_size: int, **options: Any
) -> Callable[[Iterator[BatchRequest]], Iterator[Batch]]:
    if isinstance(reader, FeatureReader):
        return reader
    return BatchPipeline(reader, batch_size, largest_size, **options)


def _weighted(batches: Iterator[Batch], weights: np.ndarray | None) -> Iterator[Batch]:
    """Add the weights of their images to batches."""
    return batches if weights is None else (_with_weights(batch, weights) for batch in batches)


def _with_weights(batch: Batch, weights: np.ndarray) -> Batch:
    chosen = torch.from_numpy(weights[batch.rows.numpy()])
    return replace(batch, weights=chosen.to(batch.labels.device, non_blocking=True))


def rows_of_batches(group: ProcessGroup, num_images: int, batch_size: int) -> slice:
    """Return this rank's contiguous rows, cut between batches."""
    batches = group.shard(-(-num_images // batch_size))
    return slice(min(batches.start * batch_size, num_images), min(batches.stop * batch_size, num_images))


def _length(rows: slice) -> int:
    return rows.stop - rows.start
