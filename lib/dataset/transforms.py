"""RGB image to a square uint8 array: torchvision's transforms on Pillow images, pixel for pixel, without it.

Importing torchvision takes 3 s in each loader process; these few lines take none. Randomness comes from the
generator that is passed in and from nowhere else. Normalisation happens on the device (`normalize.py`).
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Above this the centre is computed without the rest: a 1 x 60000 strip, resized whole, would take gigabytes.
MAX_RESIZED_PIXELS = 2**24
CROP_ATTEMPTS = 10

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class RandomResizedCrop:
    """Crop a random area in a random aspect ratio, resize it, mirror it (Szegedy et al., CVPR 2015).

    `scale` bounds the crop's share of the area (uniform), `ratio` its width / height (log-uniform).
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5

    def __post_init__(self):
        _check_size(self.size)
        _check_probability(self.flip_probability)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f'scale is {self.scale}; 0 < low <= high is needed')
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f'ratio is {self.ratio}; 0 < low <= high is needed')

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return uint8 (size, size, 3)."""
        _check_generator(rng)
        crop = image.crop(self.box(image.width, image.height, rng))
        return _to_array(_resize(crop, self.size, self.size), flip=rng.random() < self.flip_probability)

    def box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """Draw the crop for an image of this size: it needs the header alone, no pixels."""
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(CROP_ATTEMPTS):
            area = width * height * rng.uniform(self.scale[0], self.scale[1])
            ratio = math.exp(rng.uniform(log_low, log_high))
            crop_width = round(math.sqrt(area * ratio))
            crop_height = round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(rng.integers(height - crop_height + 1))
                left = int(rng.integers(width - crop_width + 1))
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

    def __post_init__(self):
        _check_size(self.size)
        _check_probability(self.flip_probability)
        if self.padding < 0:
            raise ValueError(f'padding is {self.padding}; at least 0 is needed')

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return uint8 (size, size, 3)."""
        _check_generator(rng)
        if image.size != (self.size, self.size):
            image = _resize_and_cut(image, self.size, self.size)
        top, left = (int(offset) - self.padding for offset in rng.integers(2 * self.padding + 1, size=2))
        # Pillow fills what lies outside the image with zeros.
        crop = image.crop((left, top, left + self.size, top + self.size))
        return _to_array(crop, flip=rng.random() < self.flip_probability)


@dataclass(frozen=True)
class ResizeCenterCrop:
    """Resize the shorter side to size / crop_ratio and cut the centre out: how images are seen in tests."""

    size: int
    crop_ratio: float = 0.875

    def __post_init__(self):
        _check_size(self.size)
        if not self.crop_ratio > 0:
            raise ValueError(f'crop_ratio is {self.crop_ratio}; more than 0 is needed')

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return uint8 (size, size, 3); nothing is random."""
        short_side = max(1, math.floor(self.size / self.crop_ratio))
        return _to_array(_resize_and_cut(image, short_side, self.size))


def _resize_and_cut(image: Image.Image, short_side: int, size: int) -> Image.Image:
    """Resize the shorter side, then cut out the central (size, size); zeros where there is no image."""
    shorter, longer = sorted(image.size)
    long_side = int(short_side * longer / shorter)
    portrait = image.width <= image.height
    width, height = (short_side, long_side) if portrait else (long_side, short_side)
    left, top = _central_offset(width, size), _central_offset(height, size)
    box = (left, top, left + size, top + size)
    if short_side * long_side <= MAX_RESIZED_PIXELS:
        return _resize(image, width, height).crop(box)
    return _resize_within(image, width, height, box)


def _central_offset(length: int, size: int) -> int:
    """Return where the centre cut begins; negative if `size` is longer and zeros are needed before."""
    # torchvision pads the short side first, with the smaller half before, and rounds half to even otherwise.
    return -((size - length) // 2) if size > length else round((length - size) / 2)


def _resize_within(image: Image.Image, width: int, height: int, box: Box) -> Image.Image:
    """Do what `_resize` and a crop would, computing the box alone; equal but for the weights' rounding."""
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)
    horizontal, vertical = image.width / width, image.height / height  # source pixels a target pixel
    source = (left * horizontal, top * vertical, right * horizontal, bottom * vertical)
    inside = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=source)
    return inside.crop((box[0] - left, box[1] - top, box[2] - left, box[3] - top))


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize with Pillow's bilinear filter, which widens when shrinking and so does not alias."""
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _to_array(image: Image.Image, flip: bool = False) -> np.ndarray:
    """Return a writable, C-contiguous uint8 (height, width, 3)."""
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image, dtype=np.uint8, order='C')


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f'size is {size}; at least 1 is needed')


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f'flip_probability is {probability}; 0 to 1 is allowed')


def _check_generator(rng: np.random.Generator | None) -> None:
    if rng is None:
        raise ValueError('a random transform needs a generator')
