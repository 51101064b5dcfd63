"""Batch reader: rows in, one uint8 batch out. This is the work of a loader's worker process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from lib.dataset.crop_resize import crop_resize
from lib.dataset.decode import DecodeError
from lib.dataset.device_decode import EncodedImages
from lib.dataset.image_format import hint_of
from lib.dataset.images import NOT_AN_IMAGE_FILE, Images, MissingImage
from lib.dataset.index import ClassIndex
from lib.dataset.lazy_image import LazyImage
from lib.dataset.transforms import Transform
from lib.errors import UserError, shown
from lib.runtime.read_file import reason_of
from lib.runtime.seeding import Purpose, generator, slot_draws

Result = TypeVar('Result')


class Augmentation(Protocol):
    """A change of cropped pixels in place, random by `seed` alone."""

    def __call__(self, pixels: torch.Tensor, seed: int) -> None: ...


ALL_VIEWS = -1


@dataclass(frozen=True)
class BatchRequest:
    """One batch to read: the rows of slots first_slot, first_slot + 1, ... of an epoch.

    Attributes:
        size: image size in pixels; 0: the size of the transform.
        view: number of the reader's transform, from 0. ALL_VIEWS: all of them, of images that are opened once.
        buffer: number of the reader's buffer to fill. The earlier batch in it is no longer in use.
        ahead: rows of remote images that this process will read soon, so that it begins to fetch them now.
    """

    epoch: int
    first_slot: int
    rows: np.ndarray
    size: int = 0
    view: int = 0
    buffer: int = 0
    ahead: np.ndarray | None = None


class RowReader(Protocol):
    """A source of rows, some of which may be unreadable; see BatchReader for the attributes."""

    labels: np.ndarray
    seed: int
    on_bad: str
    index: ClassIndex | None
    class_names: Sequence[str]
    hint: str

    def name(self, row: int) -> str:
        """Return the name of an image."""


def bad_image_reason(reader: RowReader, row: int, reason: str) -> str:
    """Return the reason for the list of bad images. Raises UserError with on_bad 'raise'."""
    if reader.on_bad == 'raise':
        raise UserError(f'{reader.name(row)}: {reason}{f"; {reader.hint}" if reader.hint else ""}') from None
    return reason


def read_replacement(
    reader: RowReader, row: int, read: Callable[[int], Result], bad: list[tuple[int, str]], *, epoch: int, slot: int
) -> Result:
    """Return `read` of another row of the class of an unreadable one: the first readable one in a random order.

    Args:
        read: raises DecodeError for an unreadable row.
        bad: gets (row, reason) of the unreadable rows that are tried.

    Raises:
        UserError: no row of the class is readable.
    """
    assert reader.index is not None, "on_bad 'replace' needs an index"
    label = int(reader.labels[row])
    candidates = reader.index.rows_of(label)
    random = generator(reader.seed, Purpose.REPLACE, epoch=epoch, slot=slot)
    for candidate in random.permutation(candidates).tolist():
        if candidate != row:
            try:
                return read(candidate)
            except DecodeError as error:
                bad.append((candidate, str(error)))
    name = shown(reader.class_names[label]) if len(reader.class_names) else label
    raise UserError(
        f'class {name}: none of its {len(candidates)} training images can be decoded, {reader.name(row)} '
        f'among them; repair or remove them{hint_of(reason for _, reason in bad)}'
    )


@dataclass
class RawBatch:
    """A batch as a worker returns it. Only the pixels are large, and they are in shared memory.

    Attributes:
        pixels: (batch, size, size, 3) uint8 RGB, not yet flipped; None when they are in the buffer of the request.
        flip: (batch,) bool, images that the device flips horizontally.
        labels: (batch,) int64; -1 where unknown.
        readable: (batch,) bool; False where the image could not be decoded and the pixels are zeros.
        request: that it answers.
        size: image size, pixels.
        bad: (row, reason) of every image that could not be decoded, replaced or not.
        offset: byte of the buffer at which the pixels begin.
        more_views: the same images under the reader's further transforms.
        encoded: images of all views that the device decodes, in place of their pixels; None: there are none.
    """

    pixels: torch.Tensor | None
    flip: np.ndarray
    labels: np.ndarray
    readable: np.ndarray
    request: BatchRequest
    size: int
    bad: list[tuple[int, str]] = field(default_factory=list)
    offset: int = 0
    more_views: list['RawBatch'] = field(default_factory=list)
    encoded: EncodedImages | None = None

    def pin_memory(self) -> 'RawBatch':
        """Pin the pixels, so that the copy to a GPU is asynchronous. DataLoader calls this."""
        if self.pixels is not None:
            self.pixels = self.pixels.pin_memory()
        for view in self.more_views:
            view.pin_memory()
        return self


@dataclass(frozen=True)
class _View:
    """A batch that is being filled with the crops of one transform."""

    transform: Transform
    draws: list[list[float]]
    pixels: torch.Tensor
    canvases: np.ndarray  # the pixels; indexing torch's tensor costs more
    offset: int
    flip: np.ndarray


@dataclass
class BatchReader(Dataset):
    """Maps a request to a batch. It has no mutable state, so any worker can serve any request.

    Attributes:
        images, labels: by row; labels (num_images,).
        transform, extra_transforms: crops; BatchRequest.view selects one of them.
        seed: seed of the run.
        on_bad: what to do with an image that cannot be decoded: 'replace' it by another image of its class, 'raise'
            an error, or 'mark' it (zeros, not readable), as evaluation needs.
        index: rows of each class, for replacements.
        augment: applied to the crop before it is flipped; None: nothing.
        class_names: for messages; shared with worker processes if it is a PathColumn. Empty: classes are numbers.
        hint: with on_bad 'raise', the end of the error message: how to avoid the error.
        buffers: (num_buffers, bytes) uint8 in shared memory that workers fill again and again (the first access to
            fresh shared memory takes longer than resizing the pixels); None: each batch allocates its own memory.
        sends_pixels: include the pixels in the batch. Sending a tensor's address takes the time of ten images, so the
            owner of the buffers goes without.
        leaves_to_device: the JPEG files that a GPU can decode are left to it. Not with `augment`, which needs pixels.
    """

    images: Images
    labels: np.ndarray
    transform: Transform
    seed: int
    on_bad: str = 'mark'
    index: ClassIndex | None = None
    augment: Augmentation | None = None
    extra_transforms: tuple[Transform, ...] = ()
    class_names: Sequence[str] = ()
    hint: str = ''
    buffers: torch.Tensor | None = None
    sends_pixels: bool = True
    leaves_to_device: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the image size of each view, in pixels."""
        return tuple(transform.size for transform in self.transforms)

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Return all transforms, in the order of BatchRequest.view."""
        return self.transform, *self.extra_transforms

    def name(self, row: int) -> str:
        """Return the name of an image."""
        return self.images.name(row)

    def __getitem__(self, request: BatchRequest) -> RawBatch | UserError:
        """Return the batch, or the error as a value: DataLoader would wrap it in the worker's traceback."""
        try:
            return self._read(request)
        except UserError as error:
            return error

    def _read(self, request: BatchRequest) -> RawBatch:
        if request.ahead is not None:
            self.images.prefetch(request.ahead)
        batch_size = len(request.rows)
        views, readable, bad = self._empty_views(request), np.ones(batch_size, bool), list[tuple[int, str]]()
        encoded = EncodedImages([view.transform.interpolation for view in views]) if self.leaves_to_device else None
        for position, row in enumerate(request.rows.tolist()):
            slot = request.first_slot + position
            try:
                self._crop(row, views, position, encoded)
            except DecodeError as error:
                bad.append((row, bad_image_reason(self, row, str(error))))
                readable[position] = self.on_bad == 'replace'
                for view in views:
                    view.canvases[position] = 0
                if self.on_bad == 'replace':
                    crop = partial(self._crop, views=views, position=position)
                    read_replacement(self, row, crop, bad, epoch=request.epoch, slot=slot)
            if self.augment and readable[position]:
                for view in views:
                    stream = generator(self.seed, Purpose.RECOLOR, epoch=request.epoch, slot=slot)
                    self.augment(view.pixels[position], int(stream.integers(2**63)))
        labels = self.labels[request.rows].astype(np.int64)
        first, *others = (
            RawBatch(
                view.pixels if self.sends_pixels else None,
                view.flip, labels, readable, request, view.transform.size, bad, view.offset,
            )
            for view in views
        )  # fmt: skip
        return replace(first, more_views=others, encoded=encoded if encoded and encoded.images else None)

    def _empty_views(self, request: BatchRequest) -> list[_View]:
        """Return the views of a request, one after another in its buffer, or in fresh memory."""
        transforms = self.transforms if request.view == ALL_VIEWS else (self.transforms[request.view],)
        batch_size, offset, views = len(request.rows), 0, []
        for transform in transforms:
            if request.size not in (0, transform.size):
                transform = replace(transform, size=request.size)
            size = transform.size
            if self.buffers is None:
                pixels = torch.empty((batch_size, size, size, 3), dtype=torch.uint8)
            else:
                pixels = pixels_in(self.buffers[request.buffer], batch_size, size, offset)
            draws, flip = self._draws(request, transform.num_draws), np.zeros(batch_size, bool)
            views.append(_View(transform, draws, pixels, pixels.numpy(), offset, flip))
            offset += pixels.numel()
        return views

    def _draws(self, request: BatchRequest, num_draws: int) -> list[list[float]]:
        """Return the random numbers of each slot."""
        return slot_draws(
            self.seed,
            Purpose.AUGMENT,
            epoch=request.epoch,
            first_slot=request.first_slot,
            num_slots=len(request.rows),
            num_draws=num_draws,
        ).tolist()

    def _crop(self, row: int, views: Sequence[_View], position: int, encoded: EncodedImages | None = None) -> None:
        """Crop one image into all views, where the device flips some. Raises: DecodeError, UserError.

        Args:
            encoded: gets the image instead if the device can decode it.
        """
        image = self._open(row)
        crops = [view.transform.crop_params(image.width, image.height, view.draws[position]) for view in views]
        for view, params in zip(views, crops, strict=True):
            view.flip[position] = params.flip
        if encoded is not None and encoded.add(position, image, crops):
            return
        for view, crop in zip(views, crops, strict=True):
            crop_resize(image, crop, view.canvases[position], view.transform.interpolation, is_only_crop=len(crops) < 2)

    def _open(self, row: int) -> LazyImage:
        try:
            return self.images.open(row)
        except NOT_AN_IMAGE_FILE as error:
            reason = 'no such file' if isinstance(error, FileNotFoundError) else reason_of(error)
            if self.on_bad == 'mark':
                raise DecodeError(reason) from None
            raise MissingImage(f'{self.images.name(row)}: {reason}') from None
        except OSError as error:
            raise UserError(f'{self.images.name(row)}: cannot be read ({reason_of(error)})') from None


def pixels_in(buffer: torch.Tensor, num_images: int, size: int, offset: int = 0) -> torch.Tensor:
    """Return the pixels that begin at a byte of a buffer, (num_images, size, size, 3)."""
    return buffer[offset : offset + num_images * size * size * 3].view(num_images, size, size, 3)
