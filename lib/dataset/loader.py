"""Batches on the device: workers fill uint8 batches, the device mirrors and normalises them."""

import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from lib.dataset.normalize import mirror
from lib.dataset.reader import BatchReader, Filled, Request
from lib.errors import UserError
from lib.runtime.device import one_thread
from lib.runtime.ranks import ALONE, Ranks
from lib.runtime.shared_memory import free_shared_bytes, shared_empty
from lib.runtime.workers import fresh_processes, live_with_main_process

_REQUESTS_AHEAD = 2  # of each worker


class EpochPlan(Protocol):
    """What a sampler is to a loader."""

    def plan(self, epoch: int) -> np.ndarray: ...


@dataclass
class Batch:
    """Images with their labels, on the device.

    Attributes:
        images: (batch, 3, size, size) float32, normalised.
        labels: (batch,) int64; -1 where unknown.
        readable: (batch,) bool; False where the image could not be decoded and was a canvas of zeros.
        rows: (batch,) int64, the rows that were asked for; on the CPU.
        bad: (row, reason) of every image that could not be decoded, replaced or not.
    """

    images: torch.Tensor
    labels: torch.Tensor
    readable: torch.Tensor
    rows: torch.Tensor
    bad: list[tuple[int, str]] = field(default_factory=list)


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
        plan: EpochPlan,
        num_slots: int,
        batch_size: int,
        *,
        ranks: Ranks = ALONE,
        **workers,
    ) -> None:
        """Raises: UserError where a batch has too few images for the ranks."""
        self.plan = plan
        self.batch_size = min(batch_size, num_slots)
        self.steps_per_epoch = num_slots // self.batch_size
        _check_ranks(self.batch_size, num_slots, ranks)
        self._share = ranks.share_pairs(self.batch_size)
        self.local_batch_size = self._share.stop - self._share.start
        self._feed = _Feed(reader, self.local_batch_size, **workers)

    def first_slot(self, step: int) -> int:
        """Return the slot of the epoch at which this rank's share of a step begins."""
        return step * self.batch_size + self._share.start

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first_step` on, on the device."""
        rows = self.plan.plan(epoch)
        starts = map(self.first_slot, range(first_step, self.steps_per_epoch))
        return self._feed(Request(epoch, start, rows[start : start + self.local_batch_size]) for start in starts)


def _check_ranks(batch_size: int, num_slots: int, ranks: Ranks) -> None:
    if batch_size // (1 if batch_size % 2 else 2) >= ranks.count:
        return
    if num_slots < 2 * ranks.count:
        raise UserError(
            f'{num_slots} training images are too few for {ranks.count} ranks, of which each takes a part of every '
            f'batch: start at most {max(1, num_slots // 2)}'
        )
    raise UserError(
        f'TRAIN.BATCH_SIZE: steps of {batch_size} images leave some of the {ranks.count} ranks with none; '
        f'--TRAIN_BATCH_SIZE {2 * ranks.count} gives each two, the fewest for BatchNorm'
    )


class EvalLoader:
    """Every row once, in order; the last batch may be smaller. Each rank has a contiguous part of the rows, maybe none.

    Attributes:
        num_images: rows, over all ranks.
        rows: those of this rank.
        max_batches: the most batches that any rank has.
    """

    def __init__(
        self, reader: BatchReader, num_images: int, batch_size: int, *, ranks: Ranks = ALONE, **workers
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.rows = ranks.share(num_images)
        self._num_rows = [_length(replace(ranks, rank=rank).share(num_images)) for rank in range(ranks.count)]
        self.max_batches = -(-max(self._num_rows) // batch_size)
        self._feed = _Feed(reader, min(batch_size, _length(self.rows)), **workers)

    def sizes(self, number: int) -> list[int]:
        """Return how many images each rank has in its batch of that number (from 0); 0 after its last one."""
        return [max(0, min(self.batch_size, rows - number * self.batch_size)) for rows in self._num_rows]

    def __len__(self) -> int:
        """Batches of this rank."""
        return -(-_length(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if not len(self):
            return iter(())  # without starting workers
        starts = range(self.rows.start, self.rows.stop, self.batch_size)
        return self._feed(
            Request(0, start, np.arange(start, min(start + self.batch_size, self.rows.stop))) for start in starts
        )


def _length(part: slice) -> int:
    return part.stop - part.start


class _Feed:
    """Runs requests through workers and puts the batches on the device. Workers live as long as this does."""

    def __init__(
        self,
        reader: BatchReader,
        batch_size: int,
        *,
        device: torch.device,
        normalize: Callable[[torch.Tensor], torch.Tensor],
        num_workers: int,
    ) -> None:
        self._device = device
        self._normalize = normalize
        self._requests: list[Request] = []
        # A request is sent out only when all but so many before it have been given back, and the last is still in use.
        self._num_buffers = num_workers * _REQUESTS_AHEAD + 1
        self._buffers = _buffers(self._num_buffers, batch_size, reader) if num_workers else None
        # The thread that copies batches into pinned memory knows nothing of buffers.
        sends_pixels = num_workers == 0 or device.type == 'cuda'
        self._loader = DataLoader(
            replace(reader, buffers=self._buffers, sends_pixels=sends_pixels),
            batch_size=None,
            sampler=_Queue(self._requests),
            num_workers=num_workers,
            pin_memory=device.type == 'cuda',
            persistent_workers=num_workers > 0,
            prefetch_factor=_REQUESTS_AHEAD if num_workers else None,
            multiprocessing_context=fresh_processes(__name__) if num_workers else None,
            worker_init_fn=_start_worker,
        )

    def __call__(self, requests: Iterator[Request]) -> Iterator[Batch]:
        self._requests[:] = (
            replace(request, buffer=place % self._num_buffers) for place, request in enumerate(requests)
        )
        filled = map(_or_raise, self._loader)
        if self._device.type == 'cuda':
            return self._ahead(filled)
        return map(self._on_device, filled)

    def _ahead(self, batches: Iterator[Filled]) -> Iterator[Batch]:
        """Copy and normalise each batch on a stream of its own while the one before it is computed."""
        side, ready = torch.cuda.Stream(self._device), None
        for filled in batches:
            with torch.cuda.stream(side):
                following = self._on_device(filled)
            if ready is not None:
                yield ready
            computing = torch.cuda.current_stream(self._device)
            computing.wait_stream(side)
            for tensor in (following.images, following.labels, following.readable):
                tensor.record_stream(computing)  # or the allocator would reuse its memory too early
            ready = following
        if ready is not None:
            yield ready

    def _on_device(self, filled: Filled) -> Batch:
        # On the CPU, threads that wait for their next piece keep cores from the workers: these pieces are too small.
        with one_thread() if self._device.type == 'cpu' else nullcontext():
            return self._moved(filled)

    def _moved(self, filled: Filled) -> Batch:
        def move(array: np.ndarray | torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(array).to(self._device, non_blocking=True)

        pixels = self._buffers[filled.buffer, : len(filled.rows)] if filled.pixels is None else filled.pixels
        pixels = mirror(move(pixels), move(np.flatnonzero(filled.flip)))
        rows = torch.from_numpy(filled.rows)
        return Batch(self._normalize(pixels), move(filled.labels), move(filled.readable), rows, filled.bad)


@dataclass
class _Queue:
    requests: list[Request]

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


def _buffers(num_buffers: int, batch_size: int, reader: BatchReader) -> torch.Tensor:
    """Return the memory that workers fill. Raises: UserError where there is not enough."""
    size = reader.transform.size
    needed, free = num_buffers * batch_size * size * size * 3, free_shared_bytes()
    if free is not None and needed > free:
        raise UserError(
            f'{num_buffers} batches of {batch_size} images of {size} px take {needed / 1e9:.2f} GB of shared memory, '
            f'and {free / 1e9:.2f} GB are free; a smaller --RUN_NUM_WORKERS (0: none is needed) or --TRAIN_BATCH_SIZE '
            'needs less, and in a container docker run --shm-size=8g gives more'
        )
    return shared_empty(num_buffers, batch_size, size, size, 3)


def _or_raise(filled: Filled | UserError) -> Filled:
    if isinstance(filled, UserError):
        raise filled
    return filled


def _start_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the main process, which still wants the batches under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    live_with_main_process()
