"""Crops for training and tests: torchvision's geometry, computed from the size of an image alone.

A transform is a pure function of (width, height, draws), where draws are `num_draws` numbers, uniform in [0, 1), of the
image's slot. So the crop is known before the image is decoded, and only the pixels that it needs are decoded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

Box = tuple[float, float, float, float]  # left, top, right, bottom


class CropParams(NamedTuple):
    """A part of an image, resized and pasted on a square canvas of zeros.

    Attributes:
        box: the part, in pixels of the upright image. Whole numbers, except for parts of extremely long images.
        width, height: size to which the part is resized.
        left, top: its position on the canvas; what exceeds the canvas is cut off.
        frame: the only rectangle of the canvas that is filled; None: all of it.
        flip: flip the canvas horizontally. `crop_resize` leaves this to the device.
    """

    box: Box
    width: int
    height: int
    left: int = 0
    top: int = 0
    frame: Box | None = None
    flip: bool = False

    def scale(self) -> float:
        """Return target pixels per source pixel, of the axis with the larger ratio."""
        left, top, right, bottom = self.box
        return max(self.width / (right - left), self.height / (bottom - top))


# Above this only the central part is computed: a 1 x 60000 image, resized as a whole, would take gigabytes.
MAX_RESIZED_PIXELS = 2**24
CROP_ATTEMPTS = 10
_DRAWS_PER_ATTEMPT = 4


@dataclass(frozen=True)
class Transform:
    """A rule that maps image sizes to crops.

    Attributes:
        size: width and height of the canvas, pixels.
        interpolation: filter for resizing, bilinear or bicubic.
        num_draws: random numbers that `crop_params` needs; 0 for a fixed crop.
    """

    size: int
    # Not in the text of a transform, which identifies stored results: their keys name it where it is not bilinear.
    interpolation: str = field(default='bilinear', kw_only=True, repr=False)
    num_draws: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f'size is {self.size}; at least 1 is needed')

    def crop_params(self, width: int, height: int, draws: Sequence[float] = ()) -> CropParams:
        """Return the crop of an image of width x height pixels."""
        raise NotImplementedError


@dataclass(frozen=True)
class RandomResizedCrop(Transform):
    """Random area in a random aspect ratio, resized and randomly flipped (Szegedy et al., CVPR 2015).

    Attributes:
        scale: bounds of the crop's fraction of the area (uniform).
        ratio: bounds of its width / height (log-uniform).
        flip_probability: probability of a horizontal flip.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    num_draws: ClassVar[int] = 1 + CROP_ATTEMPTS * _DRAWS_PER_ATTEMPT

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_probability(self.flip_probability)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f'scale is {self.scale}; 0 < low <= high is needed')
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f'ratio is {self.ratio}; 0 < low <= high is needed')

    def crop_params(self, width: int, height: int, draws: Sequence[float] = ()) -> CropParams:
        """Return a random crop, resized to the whole canvas."""
        box = self.box(width, height, draws[1:])
        return CropParams(box, self.size, self.size, flip=draws[0] < self.flip_probability)

    def box(self, width: int, height: int, draws: Sequence[float]) -> Box:
        """Return the crop: left, top, right, bottom, whole pixels."""
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for first in range(0, CROP_ATTEMPTS * _DRAWS_PER_ATTEMPT, _DRAWS_PER_ATTEMPT):
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
        """Return the largest central crop within the bounds of the aspect ratio."""
        crop_width, crop_height = width, height
        if width / height < self.ratio[0]:
            crop_height = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            crop_width = max(1, round(height * self.ratio[1]))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return left, top, left + crop_width, top + crop_height


@dataclass(frozen=True)
class PadCrop(Transform):
    """Zero padding, random crop and random flip: the augmentation of CIFAR (He et al., CVPR 2016, section 4.2).

    An image of another size is first resized by its shorter side and cropped at the center, as in tests.
    """

    padding: int = 4
    flip_probability: float = 0.5
    num_draws: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_probability(self.flip_probability)
        if self.padding < 0:
            raise ValueError(f'padding is {self.padding}; at least 0 is needed')

    def crop_params(self, width: int, height: int, draws: Sequence[float] = ()) -> CropParams:
        """Return the image, shifted by up to `padding` pixels in each direction."""
        right, down = (self.padding - int(draw * (2 * self.padding + 1)) for draw in draws[1:3])
        center = _resize_and_crop(width, height, self.size, self.size)
        frame = (max(0, right), max(0, down), min(self.size, self.size + right), min(self.size, self.size + down))
        return center._replace(
            left=center.left + right, top=center.top + down, frame=frame, flip=draws[0] < self.flip_probability
        )


@dataclass(frozen=True)
class ResizeCenterCrop(Transform):
    """Shorter side resized to size / crop_ratio, then the central crop: the usual transform in tests."""

    crop_ratio: float = 0.875

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.crop_ratio > 0:
            raise ValueError(f'crop_ratio is {self.crop_ratio}; more than 0 is needed')

    def crop_params(self, width: int, height: int, draws: Sequence[float] = ()) -> CropParams:
        """Return the central crop; nothing is random."""
        return _resize_and_crop(width, height, max(1, math.floor(self.size / self.crop_ratio)), self.size)


@dataclass(frozen=True)
class ResizeCornerCrop(Transform):
    """Resized as in ResizeCenterCrop, then one of the four corner crops of five-crop evaluation.

    Attributes:
        right: the right corner instead of the left one.
        bottom: the bottom corner instead of the top one.
    """

    crop_ratio: float = 0.875
    right: bool = False
    bottom: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f'crop_ratio is {self.crop_ratio}; above 0, at most 1 is needed')

    def crop_params(self, width: int, height: int, draws: Sequence[float] = ()) -> CropParams:
        """Return the corner crop; nothing is random."""
        short_side = max(1, math.floor(self.size / self.crop_ratio))
        return _resize_and_crop(width, height, short_side, self.size, (self.right, self.bottom))


@dataclass(frozen=True)
class ResizeWhole(Transform):
    """Longer side resized to `size`, the whole image centered on zeros: nothing is cut off."""

    def crop_params(self, width: int, height: int, draws: Sequence[float] = ()) -> CropParams:
        """Return the whole image; nothing is random."""
        longer = max(width, height)
        fitted_width, fitted_height = (max(1, round(length * self.size / longer)) for length in (width, height))
        left, top = (self.size - fitted_width) // 2, (self.size - fitted_height) // 2
        frame = (left, top, left + fitted_width, top + fitted_height)
        return CropParams((0, 0, width, height), fitted_width, fitted_height, left, top, frame)


def _resize_and_crop(
    width: int, height: int, short_side: int, size: int, corner: tuple[bool, bool] | None = None
) -> CropParams:
    """Return the central crop of the image resized by its shorter side, or that of a corner (right, bottom)."""
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
    """Return the offset of the central crop; negative if `size` is larger and zeros are needed before."""
    # torchvision pads the short side first, with the smaller half before, and rounds half to even otherwise.
    return -((size - length) // 2) if size > length else round((length - size) / 2)


def _central_part(width: int, height: int, resized: tuple[int, int], crop: tuple[int, int, int, int]) -> CropParams:
    """Return the crop of a resized image without resizing the rest; equal up to rounding of the filter weights."""
    left, top = max(crop[0], 0), max(crop[1], 0)
    right, bottom = min(crop[2], resized[0]), min(crop[3], resized[1])
    across, down = width / resized[0], height / resized[1]  # source pixels per target pixel
    box = (left * across, top * down, right * across, bottom * down)
    return CropParams(box, right - left, bottom - top, left - crop[0], top - crop[1])


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f'flip_probability is {probability}; 0 to 1 is allowed')
