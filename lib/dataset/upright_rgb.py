"""Upright RGB: undoes the camera's rotation and converts all of Pillow's modes, in parts that need little memory."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

# Meaning of EXIF's orientation, as in TIFF 6.0, page 36; 1 is upright.
ORIENTATION_TAG = 0x0112
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PART_PIXELS = 1 << 20  # converted at a time: conversions need up to 17 bytes per pixel

_lock = threading.Lock()
_num_silent, _filters = 0, warnings.catch_warnings()


@contextmanager
def no_warnings() -> Iterator[None]:
    """Ignore warnings about odd metadata within the block: in millions of photos they are of no use.

    Filters are the same for all threads, so they return to what they were when the last thread has left the block.
    """
    global _num_silent, _filters
    with _lock:
        if not _num_silent:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.simplefilter('ignore')
        _num_silent += 1
    try:
        yield
    finally:
        with _lock:
            _num_silent -= 1
            if not _num_silent:
                _filters.__exit__(None, None, None)


def orientation_in(metadata: dict[str, Any]) -> int:
    """Return the orientation of EXIF or else XMP, 1 to 8; 1 where it is absent or broken.

    Args:
        metadata: as in Pillow's `Image.info`.
    """
    image = Image.new('1', (1, 1))
    image.info.update(metadata)
    with no_warnings():
        return orientation(image)


def orientation(image: Image.Image) -> int:
    """Return the orientation of a loaded image, 1 to 8."""
    try:
        found = image.getexif().get(ORIENTATION_TAG)
        return int(found) if found in TRANSPOSITIONS else 1
    except Exception:  # broken metadata around good pixels; its parser fails in many ways
        return 1


def upright(image: Image.Image) -> Image.Image:
    """Undo the camera's rotation. A loaded TIFF is upright already: Pillow has removed its tag."""
    transposition = TRANSPOSITIONS.get(orientation(image))
    return image if transposition is None else image.transpose(transposition)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB."""
    if image.mode == 'RGB' and not image.has_transparency_data:
        return image
    white = _white(image) if image.mode in ('I', 'F') else 0.0
    parts = list(_parts(image.size))
    if len(parts) == 1:
        return _part_to_rgb(image, white)
    rgb = Image.new('RGB', image.size)
    for box in parts:
        rgb.paste(_part_to_rgb(image.crop(box), white), box)
    return rgb


def pixels_of(image: Image.Image) -> np.ndarray:
    """Return the pixels of an RGB image, uint8 (height, width, 3). NumPy alone would make two more copies of them."""
    parts = list(_parts(image.size))
    if len(parts) == 1:
        return np.asarray(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for left, top, right, bottom in parts:
        pixels[top:bottom, left:right] = np.asarray(image.crop((left, top, right, bottom)))
    return pixels


def gray_of(pixels: np.ndarray) -> np.ndarray:
    """Return RGB pixels, uint8 (height, width, 3), in grayscale, uint8 (height, width)."""
    height, width = pixels.shape[:2]
    gray = np.empty((height, width), np.uint8)
    for left, top, right, bottom in _parts((width, height)):
        part = Image.fromarray(pixels[top:bottom, left:right]).convert('L')
        gray[top:bottom, left:right] = np.asarray(part)
    return gray


def _parts(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes of at most _PART_PIXELS that cover an image."""
    width, height = size
    columns = min(width, _PART_PIXELS)
    rows = _PART_PIXELS // columns
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)


def _part_to_rgb(image: Image.Image, white: float) -> Image.Image:
    if image.mode.startswith('I;16'):
        # The high byte, as Pillow does for 16-bit color.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert('RGB')
    if image.mode in ('I', 'F'):
        scaled = np.clip(_finite(np.asarray(image)) / np.float32(white), 0.0, 1.0)
        return Image.fromarray(np.rint(scaled * np.float32(255.0)).astype(np.uint8)).convert('RGB')
    if image.has_transparency_data:
        layer = image.convert('RGBA')
        background = Image.new('RGBA', layer.size, 'white')
        return Image.alpha_composite(background, layer).convert('RGB')
    return image.convert('RGB')


def _white(image: Image.Image) -> float:
    """Return the sample that is white in 32-bit integers or floats, whose files don't define it.

    It is the smallest usual value that no sample exceeds (65535 for integers; 1, 255 or 65535 for floats), otherwise
    the brightest sample. Negative samples and NaN are black.
    """
    brightest = max(float(_finite(np.asarray(image.crop(box))).max()) for box in _parts(image.size))
    usual = (65535.0,) if image.mode == 'I' else (1.0, 255.0, 65535.0)
    return next((value for value in usual if brightest <= value), brightest)


def _finite(samples: np.ndarray) -> np.ndarray:
    return np.nan_to_num(samples.astype(np.float32), nan=0.0, posinf=None, neginf=0.0)
