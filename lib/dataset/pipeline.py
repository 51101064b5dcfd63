"""Batch pipeline: workers read uint8 batches ahead, the device flips and normalizes them."""

import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.utils.data import DataLoader

from lib.dataset.device_decode import EncodedImages
from lib.dataset.normalize import flip_images
from lib.dataset.reader import BatchReader, BatchRequest, RawBatch, pixels_in
from lib.errors import UserError
from lib.runtime.device import one_thread
from lib.runtime.shared_memory import SharedMemoryFull, free_shared_bytes, shared_empty
from lib.runtime.workers import exit_with_parent, process_context

_PREFETCH = 2  # requests ahead of each worker
_ROWS_AHEAD = 256  # remote images that a process fetches ahead: in the time of some round trips, it reads so many


@dataclass
class Batch:
    """Images with their labels, on the device.

    Attributes:
        images: (batch, 3, size, size) float32, normalized.
        labels: (batch,) int64; -1 where unknown.
        readable: (batch,) bool; False where the image could not be decoded and its pixels were zeros.
        rows: (batch,) int64, the requested rows; on the CPU.
        bad: (row, reason) of every image that could not be decoded, replaced or not.
        weights: (batch,) float32, of the requested rows in the training loss; None: all 1.
        more_views: the same images under the reader's further transforms, where a request is for all.
    """

    images: torch.Tensor
    labels: torch.Tensor
    readable: torch.Tensor
    rows: torch.Tensor
    bad: list[tuple[int, str]] = field(default_factory=list)
    weights: torch.Tensor | None = None
    more_views: list['Batch'] = field(default_factory=list)


class BatchPipeline:
    """Sends requests to workers and yields their batches on the device. The workers live as long as the pipeline."""

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
        decodes_on_device: bool = False,
    ) -> None:
        """Prepare for batches of at most `batch_size` images of at most `largest_size` pixels a side, in all views.

        Args:
            num_workers: processes that read batches; 0: this process reads them.
            num_threads: without workers, threads of this process that read ahead; 0: none.
            decodes_on_device: decode JPEG files on the device where it can; without the reader's augmentation.

        Raises:
            SharedMemoryFull: the workers' buffers do not fit into shared memory.
        """
        self._device, self._cpu_reader = device, reader
        self._reader = reader = replace(reader, leaves_to_device=decodes_on_device)
        self._num_threads = 0 if num_workers else num_threads
        self._num_readers = max(1, num_workers)
        self._normalize = normalize
        self._requests: list[BatchRequest] = []
        # A request is sent only after all but this many earlier ones have been returned; the last one is still in use.
        # Batches of several views are larger, and take longer.
        self._prefetch = _PREFETCH if len(reader.sizes) == 1 else 1
        self._num_buffers = num_workers * self._prefetch + 1
        sizes = reader.sizes if len(reader.sizes) > 1 else (largest_size,)
        self._buffers = _allocate_buffers(self._num_buffers, batch_size, sizes) if num_workers else None
        # DataLoader's thread that copies batches into pinned memory has no access to the buffers.
        sends_pixels = num_workers == 0 or device.type == 'cuda'
        self._loader: DataLoader = DataLoader(
            replace(reader, buffers=self._buffers, sends_pixels=sends_pixels),
            batch_size=None,
            sampler=_RequestList(self._requests),
            num_workers=num_workers,
            pin_memory=device.type == 'cuda',
            persistent_workers=num_workers > 0,
            prefetch_factor=self._prefetch if num_workers else None,
            multiprocessing_context=process_context(__name__) if num_workers else None,
            worker_init_fn=_start_worker,
        )

    def __call__(self, requests: Iterator[BatchRequest]) -> Iterator[Batch]:
        """Yield the batch of each request, in order. Raises: UserError as BatchReader."""
        if self._reader.images.is_remote:
            requests = _with_rows_ahead(list(requests), self._num_readers)
        if self._num_threads:
            batches = map(_or_raise, self._read_ahead(requests))
        else:
            self._requests[:] = (
                replace(request, buffer=number % self._num_buffers) for number, request in enumerate(requests)
            )
            batches = map(_or_raise, self._loader)
        if self._device.type == 'cuda':
            return self._overlapped(batches)
        return map(self._on_device, batches)

    def _read_ahead(self, requests: Iterator[BatchRequest]) -> Iterator[RawBatch | UserError]:
        # Within a thread, torch would start its own threads for each image.
        with ThreadPoolExecutor(self._num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pending = deque[Future]()
            for request in requests:
                pending.append(pool.submit(self._read, request))
                if len(pending) > self._prefetch * self._num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _read(self, request: BatchRequest) -> RawBatch | UserError:
        batch = self._reader[request]
        return batch.pin_memory() if isinstance(batch, RawBatch) and self._device.type == 'cuda' else batch

    def _overlapped(self, batches: Iterator[RawBatch]) -> Iterator[Batch]:
        """Copy and normalize each batch on a side stream while the previous one is computed."""
        side, ready = torch.cuda.Stream(self._device), None
        for batch in batches:
            with torch.cuda.stream(side):
                following = self._on_device(batch)
            if ready is not None:
                yield ready
            computing = torch.cuda.current_stream(self._device)
            computing.wait_stream(side)
            for view in (following, *following.more_views):
                for tensor in (view.images, view.labels, view.readable):
                    tensor.record_stream(computing)  # or the allocator would reuse its memory too early
            ready = following
        if ready is not None:
            yield ready

    def _on_device(self, batch: RawBatch) -> Batch:
        # On the CPU, idle torch threads would take cores from the workers: the tensors are too small for threads.
        with one_thread() if self._device.type == 'cpu' else nullcontext():
            return self._finish(batch)

    def _finish(self, batch: RawBatch) -> Batch:
        def move(array: np.ndarray | torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(array).to(self._device, non_blocking=True)

        views = [batch, *batch.more_views]
        pixels = [move(self._pixels_of(view)) for view in views]
        if batch.encoded is not None:
            self._decode_on_device(batch.encoded, views, pixels)
        rows, labels, readable = torch.from_numpy(batch.request.rows), move(batch.labels), move(batch.readable)
        first, *others = (
            Batch(self._normalize(flip_images(one, move(np.flatnonzero(view.flip)))), labels, readable, rows, batch.bad)
            for view, one in zip(views, pixels, strict=True)
        )
        return replace(first, more_views=others)

    def _pixels_of(self, batch: RawBatch) -> torch.Tensor:
        if batch.pixels is not None:
            return batch.pixels
        assert self._buffers is not None
        request = batch.request
        return pixels_in(self._buffers[request.buffer], len(request.rows), batch.size, batch.offset)

    def _decode_on_device(self, encoded: EncodedImages, views: list[RawBatch], pixels: list[torch.Tensor]) -> None:
        """Fill in the images that the workers left; one that the device refuses is read and judged as without it."""
        batch, request = views[0], views[0].request
        for position in encoded.decode_into(pixels):
            one = replace(
                request,
                first_slot=request.first_slot + position,
                rows=request.rows[position : position + 1],
                ahead=None,
            )
            again = _or_raise(self._cpu_reader[one])
            batch.readable[position] = again.readable[0]
            batch.bad.extend(again.bad)
            for view, canvas, read in zip(views, pixels, [again, *again.more_views], strict=True):
                canvas[position] = self._pixels_of(read)[0].to(self._device)
                view.flip[position] = read.flip[0]


def _with_rows_ahead(requests: Sequence[BatchRequest], num_readers: int) -> Iterator[BatchRequest]:
    """Yield requests for remote images, each with the rows that its reader is to begin to fetch with it.

    Args:
        num_readers: processes that get the requests in turn. The first request of each has its own rows and those of
            the next ones, _ROWS_AHEAD in all; each later one has those of one further request.
    """
    depth = max(2, -(-_ROWS_AHEAD // max(1, len(requests[0].rows)))) if requests else 0
    for number, request in enumerate(requests):
        first = number if number < num_readers else number + (depth - 1) * num_readers
        rows = [later.rows for later in requests[first : number + depth * num_readers : num_readers]]
        yield replace(request, ahead=np.concatenate(rows) if rows else None)


@dataclass
class _RequestList:
    """The sampler of DataLoader: the requests of the current epoch."""

    requests: list[BatchRequest]

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


def _allocate_buffers(num_buffers: int, batch_size: int, sizes: Sequence[int]) -> torch.Tensor:
    """Return the memory that workers fill, (num_buffers, bytes), `sizes`: of all views. Raises: SharedMemoryFull."""
    bytes_per_buffer = batch_size * 3 * sum(size * size for size in sizes)
    needed, free = num_buffers * bytes_per_buffer, free_shared_bytes()
    shown_sizes = ' + '.join(map(str, sizes))
    if free is not None and needed > free:
        raise SharedMemoryFull(
            f'{num_buffers} batches of {batch_size} images of {shown_sizes} px take {needed / 1e9:.2f} GB of shared '
            f'memory, and {free / 1e9:.2f} GB are free'
        )
    return shared_empty(num_buffers, bytes_per_buffer)


def _or_raise(batch: RawBatch | UserError) -> RawBatch:
    if isinstance(batch, UserError):
        try:
            raise batch
        finally:
            # Otherwise the error and this frame reference each other and keep all frames above alive until garbage
            # collection; workers that end then, in no order with their queues, never finish.
            del batch
    return batch


def _start_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the main process, which still needs the pending batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent()
