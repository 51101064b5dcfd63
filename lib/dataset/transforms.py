"""Crops for training and tests, as views: torchvision's geometry, decided from an image's size alone.

A transform is a pure function of (width, height, draws): `num_draws` numbers, uniform in [0, 1), of its slot. So a crop
is known before its image is decoded, and no more of the image need be decoded than it takes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

Box = tuple[float, float, float, float]  # left, top, right, bottom


class CropParams(NamedTuple):
    """A part of an image, resized and laid on a square canvas of zeros.

    Attributes:
        box: the part, in pixels of the upright image. Whole numbers, but for parts of extreme strips.
        width, height: size to which the part is resized.
        left, top: where it lies on the canvas; what reaches over an edge is cut off.
        frame: the only rectangle of the canvas that is filled; None: all of it.
        flip: whether the canvas is to be mirrored, left to right. Whoever renders leaves that to the device.
    """

    box: Box
    width: int
    height: int
    left: int = 0
    top: int = 0
    frame: Box | None = None
    flip: bool = False

    def scale(self) -> float:
        """Return target pixels a source pixel, of the axis that needs more of them."""
        left, top, right, bottom = self.box
        return max(self.width / (right - left), self.height / (bottom - top))


# Above this the centre is computed without the rest: a 1 x 60000 strip, resized whole, would take gigabytes.
MAX_RESIZED_PIXELS = 2**24
CROP_ATTEMPTS = 10
_DRAWS_AN_ATTEMPT = 4


class Transform(Protocol):
    """What decides how an image is seen.

    Attributes:
        size: side of the canvas, pixels.
        num_draws: how many random numbers `view` needs; 0 for what is not random.
    """

    size: int
    num_draws: int

    def crop_params(self, width: int, height: int, draws: Sequence[float]) -> CropParams:
        """Return what is seen of an image of this size, in pixels."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """Crop a random area in a random aspect ratio, resize it, mirror it (Szegedy et al., CVPR 2015).

    `scale` bounds the crop's share of the area (uniform), `ratio` its width / height (log-uniform).
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    num_draws: ClassVar[int] = 1 + CROP_ATTEMPTS * _DRAWS_AN_ATTEMPT

    def __post_init__(self):
        _check_size(self.size)
        _check_probability(self.flip_probability)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f'scale is {self.scale}; 0 < low <= high is needed')
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f'ratio is {self.ratio}; 0 < low <= high is needed')

    def crop_params(self, width: int, height: int, draws: Sequence[float]) -> CropParams:
        """Return a random crop, resized to the whole canvas."""
        box = self.box(width, height, draws[1:])
        return CropParams(box, self.size, self.size, flip=draws[0] < self.flip_probability)

    def box(self, width: int, height: int, draws: Sequence[float]) -> Box:
        """Return the crop: left, top, right, bottom, whole pixels."""
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for first in range(0, CROP_ATTEMPTS * _DRAWS_AN_ATTEMPT, _DRAWS_AN_ATTEMPT):
            area = width * height * _between(*self.scale, draws[first])
            ratio = math.exp(_between(log_low, log_high, draws[first + 1]))
            crop_width = round(math.sqrt(area * ratio))
            crop_height = round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(draws[first + 2] * (height - crop_height + 1))
                left = int(draws[first + 3] * (width - crop_width + 1))
                return left, top, left + crop_width, top + crop_height
        return self._central_box(width, height)

    def _central_box(self, width: int, height: int) -> Box:
        """Return the largest centred crop whose ratio is allowed."""
        crop_width, crop_height = width, height
        if width / height < self.ratio[0]:
            crop_height = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            crop_width = max(1, round(height * self.ratio[1]))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return left, top, left + crop_width, top + crop_height


@dataclass(frozen=True)
class PadCrop:
    """Pad with zeros, crop at random, mirror: the augmentation of CIFAR (He et al., CVPR 2016, section 4.2).

    An image of another size is first resized by its shorter side and cut at the centre, as for testing.
    """

    size: int
    padding: int = 4
    flip_probability: float = 0.5
    num_draws: ClassVar[int] = 3

    def __post_init__(self):
        _check_size(self.size)
        _check_probability(self.flip_probability)
        if self.padding < 0:
            raise ValueError(f'padding is {self.padding}; at least 0 is needed')

    def crop_params(self, width: int, height: int, draws: Sequence[float]) -> CropParams:
        """Return the image, shifted by up to `padding` pixels each way."""
        right, down = (self.padding - int(draw * (2 * self.padding + 1)) for draw in draws[1:3])
        cut = _resized_and_cut(width, height, self.size, self.size)
        frame = (max(0, right), max(0, down), min(self.size, self.size + right), min(self.size, self.size + down))
        return cut._replace(
            left=cut.left + right, top=cut.top + down, frame=frame, flip=draws[0] < self.flip_probability
        )


@dataclass(frozen=True)
class ResizeCenterCrop:
    """Resize the shorter side to size / crop_ratio and cut the centre out: how images are seen in tests."""

    size: int
    crop_ratio: float = 0.875
    num_draws: ClassVar[int] = 0

    def __post_init__(self):
        _check_size(self.size)
        if not self.crop_ratio > 0:
            raise ValueError(f'crop_ratio is {self.crop_ratio}; more than 0 is needed')

    def crop_params(self, width: int, height: int, draws: Sequence[float] = ()) -> CropParams:
        """Return the centre; nothing is random."""
        return _resized_and_cut(width, height, max(1, math.floor(self.size / self.crop_ratio)), self.size)


@dataclass(frozen=True)
class ResizeCornerCrop:
    """Resize as ResizeCenterCrop does and cut a corner out, one of the four beside the centre of five crops.

    `right`, `bottom`: whether it is the right one of the left and right, and the bottom one of the top and bottom.
    """

    size: int
    crop_ratio: float = 0.875
    right: bool = False
    bottom: bool = False
    num_draws: ClassVar[int] = 0

    def __post_init__(self):
        _check_size(self.size)
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f'crop_ratio is {self.crop_ratio}; above 0, at most 1 is needed')

    def crop_params(self, width: int, height: int, draws: Sequence[float] = ()) -> CropParams:
        """Return the corner; nothing is random."""
        short_side = max(1, math.floor(self.size / self.crop_ratio))
        return _resized_and_cut(width, height, short_side, self.size, (self.right, self.bottom))


@dataclass(frozen=True)
class ResizeWhole:
    """Resize the longer side to `size`, the whole image in the middle of zeros: nothing is cut off."""

    size: int
    num_draws: ClassVar[int] = 0

    def __post_init__(self):
        _check_size(self.size)

    def crop_params(self, width: int, height: int, draws: Sequence[float] = ()) -> CropParams:
        """Return the whole image; nothing is random."""
        longer = max(width, height)
        fitted = [max(1, round(length * self.size / longer)) for length in (width, height)]
        left, top = ((self.size - length) // 2 for length in fitted)
        frame = (left, top, left + fitted[0], top + fitted[1])
        return CropParams((0, 0, width, height), *fitted, left, top, frame)


def _resized_and_cut(
    width: int, height: int, short_side: int, size: int, corner: tuple[bool, bool] | None = None
) -> CropParams:
    """Return the image resized by its shorter side, its centre, or a corner (right, bottom), on a canvas of `size`."""
    shorter, longer = sorted((width, height))
    long_side = int(short_side * longer / shorter)
    resized = (short_side, long_side) if width <= height else (long_side, short_side)
    if corner is None:
        left, top = (_central_offset(length, size) for length in resized)
    else:
        left, top = ((length - size) * far for length, far in zip(resized, corner, strict=True))
    if short_side * long_side <= MAX_RESIZED_PIXELS:
        return CropParams((0, 0, width, height), *resized, -left, -top)
    return _central_part(width, height, resized, (left, top, left + size, top + size))


def _central_offset(length: int, size: int) -> int:
    """Return where the centre cut begins; negative if `size` is longer and zeros are needed before."""
    # torchvision pads the short side first, with the smaller half before, and rounds half to even otherwise.
    return -((size - length) // 2) if size > length else round((length - size) / 2)


def _central_part(width: int, height: int, resized: tuple[int, int], cut: tuple[int, int, int, int]) -> CropParams:
    """Return the view of what lies in `cut` of the resized image, alone; the same but for the weights' rounding."""
    left, top = max(cut[0], 0), max(cut[1], 0)
    right, bottom = min(cut[2], resized[0]), min(cut[3], resized[1])
    across, down = width / resized[0], height / resized[1]  # source pixels a target pixel
    box = (left * across, top * down, right * across, bottom * down)
    return CropParams(box, right - left, bottom - top, left - cut[0], top - cut[1])


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f'size is {size}; at least 1 is needed')


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f'flip_probability is {probability}; 0 to 1 is allowed')
