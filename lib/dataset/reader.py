"""From rows to a uint8 batch: what a worker process does."""

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from lib.dataset.crop_resize import crop_resize
from lib.dataset.decode import DecodeError
from lib.dataset.images import Images
from lib.dataset.index import ClassIndex
from lib.dataset.lazy_image import LazyImage
from lib.dataset.transforms import Transform
from lib.errors import UserError
from lib.runtime.seeding import Purpose, generator, slot_draws


class Augment(Protocol):
    """What may happen to a crop beyond its choice, in place; random by `seed` alone."""

    def __call__(self, pixels: torch.Tensor, seed: int) -> None: ...


@dataclass(frozen=True)
class BatchRequest:
    """One batch to fill: the rows of slots first_slot, first_slot + 1, ... of an epoch.

    `size` is the side of its images, pixels; 0: what the transform says. `look` is which of a reader's transforms is
    taken: 0 the first, from 1 on the other ones. `buffer` is which of a reader's buffers a worker fills; nothing of an
    earlier batch in it is needed any more.
    """

    epoch: int
    first_slot: int
    rows: np.ndarray
    size: int = 0
    look: int = 0
    buffer: int = 0


@dataclass
class RawBatch:
    """A batch as a worker leaves it; only the pixels are large, and they lie in shared memory.

    Attributes:
        pixels: (batch, size, size, 3) uint8 RGB, not yet mirrored; None where they lie in `buffer` of the reader's.
        flip: (batch,) bool, what the device is to mirror.
        labels: (batch,) int64; -1 where unknown.
        readable: (batch,) bool; False where the image could not be decoded and the pixels are zeros.
        rows: (batch,) the rows that were asked for.
        size: side of the images, pixels.
        bad: (row, reason) of every image that could not be decoded, replaced or not.
    """

    pixels: torch.Tensor | None
    flip: np.ndarray
    labels: np.ndarray
    readable: np.ndarray
    rows: np.ndarray
    size: int
    bad: list[tuple[int, str]] = field(default_factory=list)
    buffer: int = 0

    def pin_memory(self) -> 'RawBatch':
        """Called by DataLoader, so that the copy to a GPU need not wait."""
        self.pixels = self.pixels.pin_memory()
        return self


@dataclass
class BatchReader(Dataset):
    """Turns a request into a batch. Holds no state that changes, so any worker may do any request.

    Attributes:
        images, labels: what to read, and (num_images,) its classes.
        transform: what is seen of each image.
        others: other transforms, for requests that ask for them.
        seed: of the run.
        on_bad: what happens to an image that cannot be decoded: 'replace' takes another one of its class, 'raise'
            stops, 'mark' leaves a hole (zeros, not readable), as evaluation wants it.
        index: where replacements are found.
        augment: what happens to the crop before it is mirrored; None: nothing.
        buffers: (num_buffers, bytes) uint8 in shared memory for workers to fill, over and over (fresh shared memory
            takes longer to touch than pixels take to resize); None: each batch gets memory of its own.
        sends_pixels: whether a batch travels with its pixels. Sending an address takes the time of ten images, so who
            holds the buffers himself does without.
    """

    images: Images
    labels: np.ndarray
    transform: Transform
    seed: int
    on_bad: str = 'mark'
    index: ClassIndex | None = None
    augment: Augment | None = None
    others: tuple[Transform, ...] = ()
    buffers: torch.Tensor | None = None
    sends_pixels: bool = True

    def __getitem__(self, request: BatchRequest) -> 'RawBatch | UserError':
        # DataLoader would wrap an exception in the worker's traceback; as a value it arrives as it is.
        try:
            return self._at(request)._fill(request)
        except UserError as error:
            return error

    def _at(self, request: BatchRequest) -> 'BatchReader':
        """Return what reads images with the transform, and at the size, that are asked for."""
        transform = (self.transform, *self.others)[request.look]
        if request.size not in (0, transform.size):
            transform = replace(transform, size=request.size)
        return self if transform is self.transform else replace(self, transform=transform)

    def _fill(self, request: BatchRequest) -> RawBatch:
        batch_size, size = len(request.rows), self.transform.size
        if self.buffers is None:
            pixels = torch.empty((batch_size, size, size, 3), dtype=torch.uint8)
        else:
            pixels = pixels_in(self.buffers[request.buffer], batch_size, size)
        flip, readable = np.zeros(batch_size, bool), np.ones(batch_size, bool)
        bad: list[tuple[int, str]] = []
        draws, canvases = self._draws(request), pixels.numpy()
        for place, row in enumerate(request.rows.tolist()):
            slot = request.first_slot + place
            try:
                flip[place] = self._draw(row, draws[place], canvases[place])
            except DecodeError as error:
                bad.append((row, self._bad(row, error)))
                readable[place] = self.on_bad == 'replace'
                canvases[place] = 0
                if self.on_bad == 'replace':
                    flip[place] = self._replace(row, request.epoch, slot, draws[place], canvases[place], bad)
            if self.augment and readable[place]:
                stream = generator(self.seed, Purpose.RECOLOR, epoch=request.epoch, slot=slot)
                self.augment(pixels[place], int(stream.integers(2**63)))
        labels = self.labels[request.rows].astype(np.int64)
        sent = pixels if self.sends_pixels else None
        return RawBatch(sent, flip, labels, readable, request.rows, size, bad, request.buffer)

    def _draws(self, request: BatchRequest) -> list[list[float]]:
        """Return the random numbers of each slot."""
        return slot_draws(
            self.seed,
            Purpose.AUGMENT,
            epoch=request.epoch,
            first_slot=request.first_slot,
            num_slots=len(request.rows),
            num_draws=self.transform.num_draws,
        ).tolist()

    def _draw(self, row: int, draws: list[float], canvas: np.ndarray) -> bool:
        """Draw one image on the canvas, and return whether it is to be mirrored. Raises: DecodeError, UserError."""
        picture = self._open(row)
        view = self.transform.crop_params(picture.width, picture.height, draws)
        crop_resize(picture, view, canvas)
        return view.flip

    def _bad(self, row: int, error: DecodeError) -> str:
        if self.on_bad == 'raise':
            raise UserError(
                f'{self.images.name(row)}: {error}; --DATASET_ON_BAD_IMAGE skip trains without such images'
            ) from None
        return str(error)

    def _replace(
        self, row: int, epoch: int, slot: int, draws: list[float], canvas: np.ndarray, bad: list[tuple[int, str]]
    ) -> bool:
        """Draw another image of the class instead, and return whether it is to be mirrored."""
        label = int(self.labels[row])
        others = self.index.rows_of(label)
        for other in generator(self.seed, Purpose.REPLACE, epoch=epoch, slot=slot).permutation(others).tolist():
            if other != row:
                try:
                    return self._draw(other, draws, canvas)
                except DecodeError as error:
                    bad.append((other, str(error)))
        raise UserError(
            f'class {label}: none of its {len(others)} training images can be decoded, {self.images.name(row)} '
            'among them; mend or remove them'
        )

    def _open(self, row: int) -> LazyImage:
        try:
            return self.images.open(row)
        except FileNotFoundError:
            if self.on_bad == 'mark':
                raise DecodeError('no such file') from None
            raise UserError(f'{self.images.name(row)}: no such file') from None
        except OSError as error:
            raise UserError(f'{self.images.name(row)}: cannot be read ({error.strerror or error})') from None


def pixels_in(buffer: torch.Tensor, num_images: int, size: int) -> torch.Tensor:
    """Return the pixels that a buffer begins with, (num_images, size, size, 3)."""
    return buffer[: num_images * size * size * 3].view(num_images, size, size, 3)
