"""Statistics of one image (size, format, digest, thumbnail) and of a split (class sizes, image sizes)."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lib.dataset.decode import decode
from lib.dataset.image_format import HEADER_BYTES, image_format
from lib.dataset.lazy_image import open_lazy_image
from lib.dataset.upright_rgb import pixels_of

SIDE = 32  # of thumbnails, pixels
FORMATS = ('JPEG', 'PNG', 'WebP', 'BMP', 'GIF', 'TIFF', 'AVIF', 'JPEG 2000', 'HEIC', 'other', 'pixels')


@dataclass(frozen=True)
class ImageStats:
    """Statistics of one decoded image.

    Attributes:
        width, height: width and height of the upright image, pixels.
        format: index into FORMATS.
        digest: 64 bits, of the size and the gray values of all pixels.
        thumbnail: (32, 32) uint8, the gray image resized to a square.
        warning: error from which the decoder recovered; '' if there was none.
    """

    width: int
    height: int
    format: int
    digest: int
    thumbnail: np.ndarray
    warning: str = ''


def image_stats(content: bytes | np.ndarray) -> ImageStats:
    """Decode a whole image, in grayscale.

    Raises: DecodeError if training could not use the image.
    """
    if isinstance(content, np.ndarray):
        return _stats_of(Image.fromarray(content).convert('L'), FORMATS.index('pixels'))
    file_format = FORMATS.index(image_format(content[:HEADER_BYTES]) or 'other')
    image = open_lazy_image(content)
    pixels = image.gray_pixels()
    return _stats_of(Image.fromarray(pixels), file_format, image.warning)


def color_details(content: bytes | np.ndarray) -> tuple[int, np.ndarray]:
    """Return the digest of all pixels in color, and the image resized to (32, 32, 3) uint8.

    Raises: DecodeError.
    """
    image = Image.fromarray(content) if isinstance(content, np.ndarray) else decode(content)
    return _digest(image.size, pixels_of(image)), _thumbnail(image)


def _stats_of(image: Image.Image, file_format: int, warning: str = '') -> ImageStats:
    digest = _digest(image.size, np.asarray(image))
    return ImageStats(*image.size, file_format, digest, _thumbnail(image), warning)


def _digest(size: tuple[int, int], pixels: np.ndarray) -> int:
    digest = hashlib.sha256(repr(size).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest()[:8], 'little')


def _thumbnail(image: Image.Image) -> np.ndarray:
    # The gap lets Pillow average whole blocks first, which is twice as fast. Not BOX: its cells are uneven if a side is
    # no multiple of 32, so that a copy at half the size would differ.
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))


_PERCENTILES = {'p5': 5, 'median': 50, 'p95': 95}


def class_statistics(labels: np.ndarray, num_classes: int, few: int) -> dict[str, Any]:
    """Return class counts of a labeled split; {} without labels.

    Args:
        labels: (num_images,) class of each image; -1 if unknown.
        few: non-empty classes with fewer images are listed.
    """
    labeled = labels[labels >= 0]
    if not len(labeled):
        return {}
    counts = np.bincount(labeled, minlength=num_classes)
    nonempty = counts[counts > 0]
    return {
        'num_classes': num_classes,
        'smallest': int(nonempty.min()),
        'median': float(np.median(nonempty)),
        'largest': int(nonempty.max()),
        'imbalance': float(nonempty.max() / nonempty.min()),
        'empty': np.flatnonzero(counts == 0).tolist(),
        'few': np.flatnonzero((counts > 0) & (counts < few)).tolist(),
        'counts': counts.tolist(),
    }


def size_statistics(stats: np.ndarray, enlarged_below: int) -> dict[str, Any]:
    """Return percentiles of width, height (pixels) and bytes, and counts of formats; {} without images.

    Args:
        stats: records of readable images, as in Scan.stats.
        enlarged_below: images whose shorter side is below it (pixels) are upscaled for the model.
    """
    if not len(stats):
        return {}
    short = np.minimum(stats['width'], stats['height'])
    counts = np.bincount(stats['format'], minlength=len(FORMATS))
    return {
        **{
            name: {key: int(value) for key, value in zip(_PERCENTILES, _percentiles(stats[column]), strict=True)}
            for name, column in (('width', 'width'), ('height', 'height'), ('bytes', 'num_bytes'))
        },
        'formats': {name: int(count) for name, count in zip(FORMATS, counts, strict=True) if count},
        'enlarged_below': enlarged_below,
        'enlarged': int((short < enlarged_below).sum()),
    }


def _percentiles(values: np.ndarray) -> np.ndarray:
    return np.percentile(values, list(_PERCENTILES.values()), method='nearest')
