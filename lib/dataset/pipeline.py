"""Requests to batches on the device: workers fill uint8 batches, the device mirrors and normalises them."""

import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.utils.data import DataLoader

from lib.dataset.normalize import mirror
from lib.dataset.reader import BatchReader, RawBatch, BatchRequest, pixels_in
from lib.errors import UserError
from lib.runtime.device import one_thread
from lib.runtime.shared_memory import free_shared_bytes, shared_empty
from lib.runtime.workers import exit_with_parent, fresh_processes

_REQUESTS_AHEAD = 2  # of each worker


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


class BatchPipeline:
    """Runs requests through workers and puts the batches on the device. Workers live as long as this does."""

    def __init__(
        self,
        reader: BatchReader,
        batch_size: int,
        largest_size: int,
        *,
        device: torch.device,
        normalize: Callable[[torch.Tensor], torch.Tensor],
        num_workers: int,
        num_threads: int = 0,
    ) -> None:
        """Prepare for batches of at most so many images of at most such a side.

        Args:
            num_threads: without workers, so many threads of this process read ahead; 0: none does.
        """
        self._device, self._reader = device, reader
        self._num_threads = 0 if num_workers else num_threads
        self._normalize = normalize
        self._requests: list[BatchRequest] = []
        # A request is sent out only when all but so many before it have been given back, and the last is still in use.
        self._num_buffers = num_workers * _REQUESTS_AHEAD + 1
        self._buffers = _buffers(self._num_buffers, batch_size, largest_size) if num_workers else None
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

    def __call__(self, requests: Iterator[BatchRequest]) -> Iterator[Batch]:
        if self._num_threads:
            filled = map(_or_raise, self._read_ahead(requests))
        else:
            self._requests[:] = (
                replace(request, buffer=place % self._num_buffers) for place, request in enumerate(requests)
            )
            filled = map(_or_raise, self._loader)
        if self._device.type == 'cuda':
            return self._ahead(filled)
        return map(self._on_device, filled)

    def _read_ahead(self, requests: Iterator[BatchRequest]) -> Iterator[RawBatch | UserError]:
        # In a thread, torch would start threads of its own for each image.
        with ThreadPoolExecutor(self._num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pending = deque[Future]()
            for request in requests:
                pending.append(pool.submit(self._fill, request))
                if len(pending) > _REQUESTS_AHEAD * self._num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _fill(self, request: BatchRequest) -> RawBatch | UserError:
        filled = self._reader[request]
        return filled.pin_memory() if isinstance(filled, RawBatch) and self._device.type == 'cuda' else filled

    def _ahead(self, batches: Iterator[RawBatch]) -> Iterator[Batch]:
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

    def _on_device(self, filled: RawBatch) -> Batch:
        # On the CPU, threads that wait for their next piece keep cores from the workers: these pieces are too small.
        with one_thread() if self._device.type == 'cpu' else nullcontext():
            return self._moved(filled)

    def _moved(self, filled: RawBatch) -> Batch:
        def move(array: np.ndarray | torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(array).to(self._device, non_blocking=True)

        pixels = filled.pixels
        if pixels is None:
            pixels = pixels_in(self._buffers[filled.buffer], len(filled.rows), filled.size)
        pixels = mirror(move(pixels), move(np.flatnonzero(filled.flip)))
        rows = torch.from_numpy(filled.rows)
        return Batch(self._normalize(pixels), move(filled.labels), move(filled.readable), rows, filled.bad)


@dataclass
class _Queue:
    requests: list[BatchRequest]

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


def _buffers(num_buffers: int, batch_size: int, size: int) -> torch.Tensor:
    """Return the memory that workers fill, (num_buffers, bytes). Raises: UserError where there is not enough."""
    each = batch_size * size * size * 3
    needed, free = num_buffers * each, free_shared_bytes()
    if free is not None and needed > free:
        raise UserError(
            f'{num_buffers} batches of {batch_size} images of {size} px take {needed / 1e9:.2f} GB of shared memory, '
            f'and {free / 1e9:.2f} GB are free; a smaller --RUN_NUM_WORKERS (0: none is needed) or --TRAIN_BATCH_SIZE '
            'needs less, and in a container docker run --shm-size=8g gives more'
        )
    return shared_empty(num_buffers, each)


def _or_raise(filled: RawBatch | UserError) -> RawBatch:
    if isinstance(filled, UserError):
        try:
            raise filled
        finally:
            # Or the error and this frame would hold each other, and all frames above until they are collected: workers
            # that end then, in no order with their queues, are waited for in vain.
            del filled
    return filled


def _start_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the main process, which still wants the batches under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent()
