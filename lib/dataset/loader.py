"""From rows to batches on the device: worker processes fill uint8 batches, the device normalises them."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lib.dataset.images import DecodeError
from lib.dataset.index import ProductIndex
from lib.errors import UserError
from lib.runtime.seeding import Purpose, generator

Transform = Callable[[Image.Image, np.random.Generator | None], np.ndarray]


class Images(Protocol):
    """Where images come from, by row."""

    def load(self, row: int) -> Image.Image: ...

    def name(self, row: int) -> str: ...


class EpochPlan(Protocol):
    """What a sampler is to a loader."""

    def plan(self, epoch: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Request:
    """One batch to fill: the rows of slots first_slot, first_slot + 1, ... of an epoch."""

    epoch: int
    first_slot: int
    rows: np.ndarray


@dataclass
class Batch:
    """Images with their labels.

    Attributes:
        images: (batch, size, size, 3) uint8 from a worker; (batch, 3, size, size) float32, normalised, on the device.
        labels: (batch,) int64; -1 where unknown.
        readable: (batch,) bool; False where the image could not be decoded and the pixels are zeros.
        rows: (batch,) the rows that were asked for.
        bad: (row, reason) of every image that could not be decoded, replaced or not.
    """

    images: torch.Tensor
    labels: torch.Tensor
    readable: torch.Tensor
    rows: torch.Tensor
    bad: list[tuple[int, str]] = field(default_factory=list)

    def pin_memory(self) -> 'Batch':
        """Called by DataLoader, so that copies to a GPU need not wait."""
        tensors = (self.images, self.labels, self.readable, self.rows)
        return Batch(*(tensor.pin_memory() for tensor in tensors), self.bad)


@dataclass
class BatchReader(Dataset):
    """Turns a request into a batch. Holds no state that changes, so any worker may do any request.

    Attributes:
        images, labels, transform: what to read, (num_images,) its classes, and how it becomes (size, size, 3) uint8.
        size: side of the result, pixels.
        seed: of the run.
        on_bad: what happens to an image that cannot be decoded: 'replace' takes another one of its class, 'raise'
            stops, 'mark' leaves a hole (zeros, not readable), as evaluation wants it.
        index: where replacements are found.
    """

    images: Images
    labels: np.ndarray
    transform: Transform
    size: int
    seed: int
    on_bad: str = 'mark'
    index: ProductIndex | None = None

    def __getitem__(self, request: Request) -> 'Batch | UserError':
        # DataLoader would wrap an exception in the worker's traceback; as a value it arrives as it is.
        try:
            return self._fill(request)
        except UserError as error:
            return error

    def _fill(self, request: Request) -> Batch:
        batch_size = len(request.rows)
        pixels = np.zeros((batch_size, self.size, self.size, 3), np.uint8)
        readable = np.ones(batch_size, bool)
        bad: list[tuple[int, str]] = []
        for place, row in enumerate(request.rows.tolist()):
            slot = request.first_slot + place
            image = self._load(row, request.epoch, slot, bad)
            if image is None:
                readable[place] = False
            else:
                random = generator(self.seed, Purpose.AUGMENT, epoch=request.epoch, slot=slot)
                pixels[place] = self.transform(image, random)
        labels = self.labels[request.rows].astype(np.int64)
        return Batch(*map(torch.from_numpy, (pixels, labels, readable, request.rows)), bad)

    def _load(self, row: int, epoch: int, slot: int, bad: list[tuple[int, str]]) -> Image.Image | None:
        try:
            return self._open(row)
        except DecodeError as error:
            if self.on_bad == 'raise':
                raise UserError(
                    f'{self.images.name(row)}: {error}; --DATASET_ON_BAD_IMAGE skip trains without such images'
                ) from None
            bad.append((row, str(error)))
        return self._replacement(row, epoch, slot, bad) if self.on_bad == 'replace' else None

    def _replacement(self, row: int, epoch: int, slot: int, bad: list[tuple[int, str]]) -> Image.Image:
        label = int(self.labels[row])
        others = self.index.rows_of(label)
        for other in generator(self.seed, Purpose.REPLACE, epoch=epoch, slot=slot).permutation(others).tolist():
            if other != row:
                try:
                    return self._open(other)
                except DecodeError as error:
                    bad.append((other, str(error)))
        raise UserError(
            f'class {label}: none of its {len(others)} training images can be decoded, {self.images.name(row)} '
            'among them; mend or remove them'
        )

    def _open(self, row: int) -> Image.Image:
        try:
            return self.images.load(row)
        except FileNotFoundError:
            if self.on_bad == 'mark':
                raise DecodeError('no such file') from None
            raise UserError(f'{self.images.name(row)}: no such file') from None
        except OSError as error:
            raise UserError(f'{self.images.name(row)}: cannot be read ({error.strerror or error})') from None


class TrainLoader:
    """The training batches of an epoch, starting at any of them.

    The partial last batch is dropped; a set smaller than a batch is one batch.
    """

    def __init__(self, reader: BatchReader, plan: EpochPlan, num_slots: int, batch_size: int, **workers) -> None:
        self.plan = plan
        self.batch_size = min(batch_size, num_slots)
        self.steps_per_epoch = num_slots // self.batch_size
        self._feed = _Feed(reader, **workers)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first_step` on, on the device."""
        rows = self.plan.plan(epoch)
        starts = range(first_step * self.batch_size, self.steps_per_epoch * self.batch_size, self.batch_size)
        return self._feed(Request(epoch, start, rows[start : start + self.batch_size]) for start in starts)


class EvalLoader:
    """Every row once, in order; the last batch may be smaller."""

    def __init__(self, reader: BatchReader, num_images: int, batch_size: int, **workers) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self._feed = _Feed(reader, **workers)

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        rows = np.arange(self.num_images)
        starts = range(0, self.num_images, self.batch_size)
        return self._feed(Request(0, start, rows[start : start + self.batch_size]) for start in starts)


class _Feed:
    """Runs requests through workers and puts the batches on the device. Workers live as long as this does."""

    def __init__(
        self,
        reader: BatchReader,
        *,
        device: torch.device,
        normalize: Callable[[torch.Tensor], torch.Tensor],
        num_workers: int,
    ) -> None:
        self._device = device
        self._normalize = normalize
        self._requests: list[Request] = []
        self._loader = DataLoader(
            reader,
            batch_size=None,
            sampler=_Queue(self._requests),
            num_workers=num_workers,
            pin_memory=device.type == 'cuda',
            persistent_workers=num_workers > 0,
            multiprocessing_context=_fresh_processes() if num_workers else None,
            worker_init_fn=_ignore_interrupts,
        )

    def __call__(self, requests: Iterator[Request]) -> Iterator[Batch]:
        self._requests[:] = requests
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield self._on_device(batch)

    def _on_device(self, batch: Batch) -> Batch:
        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self._device, non_blocking=True)

        images = self._normalize(move(batch.images))
        return Batch(images, move(batch.labels), move(batch.readable), batch.rows, batch.bad)


@dataclass
class _Queue:
    requests: list[Request]

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


def _fresh_processes() -> multiprocessing.context.BaseContext:
    """Return how workers are started: from a clean process, since forking one with threads or CUDA may hang."""
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    # Imported once in the server, not in every worker.
    context.set_forkserver_preload([__name__])
    return context


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the main process, which still wants the batches under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
