"""One image: its size, whether it is whole, its pixels' digest, and small pictures of it to compare.

Figures of a split: how many images its classes have, how large its images are.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from lib.dataset.decode import TRANSPOSITIONS, check_size, decode
from lib.dataset.lazy_image import jpeg_orientation

SIDE = 32  # of the small pictures, pixels
FORMATS = ('JPEG', 'PNG', 'WebP', 'BMP', 'GIF', 'TIFF', 'pixels')
_SIGNATURES = ((b'\xff\xd8', 0), (b'\x89PNG', 1), (b'RIFF', 2), (b'BM', 3), (b'GIF8', 4), (b'II', 5), (b'MM', 5))


@dataclass(frozen=True)
class Look:
    """What decoding an image tells.

    Attributes:
        width, height: upright, pixels.
        format: its place in FORMATS.
        digest: 64 bits, of size and grey values of all pixels.
        grey: (32, 32) uint8, the picture squeezed to a square by averages.
        fault: what the decoder got over, '' when nothing.
    """

    width: int
    height: int
    format: int
    digest: int
    grey: np.ndarray
    fault: str = ''


def look_at(content: bytes | np.ndarray) -> Look:
    """Decode an image whole, in grey.

    Raises: DecodeError when it cannot be used for training.
    """
    if isinstance(content, np.ndarray):
        return _look(Image.fromarray(content).convert('L'), FORMATS.index('pixels'))
    file_format = next((number for start, number in _SIGNATURES if content.startswith(start)), 0)
    if content.startswith(b'\xff\xd8'):
        picture, fault = _decode_jpeg(content)
        if picture is not None:
            return _look(picture, file_format)
        # The training's decoder has the last word: some faults it gets over, and some colours only it can read.
        return _look(decode(content).convert('L'), file_format, fault)
    return _look(decode(content).convert('L'), file_format)


def look_closer(content: bytes | np.ndarray) -> tuple[int, np.ndarray]:
    """Return the digest of all pixels in colour, and the picture squeezed to (32, 32, 3) uint8.

    Raises: DecodeError.
    """
    picture = Image.fromarray(content) if isinstance(content, np.ndarray) else decode(content)
    return _digest(picture.size, np.asarray(picture)), _squeezed(picture)


def _decode_jpeg(data: bytes) -> tuple[Image.Image | None, str]:
    """Return the upright picture in grey, or None and what is wrong.

    Grey takes two thirds of the time of colour, and reads every byte as well, so a file that was cut short shows.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None, ''
    check_size((width, height))
    if colours in ('CMYK', 'YCCK'):
        return None, ''
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace='GRAY', strict=True)
    except ValueError as error:
        return None, ' '.join(str(error).split())
    picture = Image.fromarray(pixels[:, :, 0])
    transposition = TRANSPOSITIONS.get(jpeg_orientation(data))
    return (picture if transposition is None else picture.transpose(transposition)), ''


def _look(picture: Image.Image, file_format: int, fault: str = '') -> Look:
    pixels = np.asarray(picture)
    return Look(*picture.size, file_format, _digest(picture.size, pixels), _squeezed(picture), fault)


def _digest(size: tuple[int, int], pixels: np.ndarray) -> int:
    digest = hashlib.sha256(repr(size).encode())
    digest.update(np.ascontiguousarray(pixels))
    return int.from_bytes(digest.digest()[:8], 'little')


def _squeezed(picture: Image.Image) -> np.ndarray:
    # The gap lets Pillow take plain averages of whole blocks first, which is twice as fast. Not BOX: its cells are
    # uneven where a side is no multiple of 32, so that a copy of half the size would look different.
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))


_PERCENTILES = {'p5': 5, 'median': 50, 'p95': 95}


def class_statistics(labels: np.ndarray, num_classes: int, few: int) -> dict[str, Any]:
    """Return counts of a labelled split; {} without labels.

    Args:
        labels: (num_images,) class of each image; -1 where unknown.
        few: classes with fewer images, but not none, are listed.
    """
    known = labels[labels >= 0]
    if not len(known):
        return {}
    counts = np.bincount(known, minlength=num_classes)
    filled = counts[counts > 0]
    return {
        'num_classes': num_classes,
        'smallest': int(filled.min()),
        'median': float(np.median(filled)),
        'largest': int(filled.max()),
        'imbalance': float(filled.max() / filled.min()),
        'empty': np.flatnonzero(counts == 0).tolist(),
        'few': np.flatnonzero((counts > 0) & (counts < few)).tolist(),
        'counts': counts.tolist(),
    }


def size_statistics(seen: np.ndarray, enlarged_below: int) -> dict[str, Any]:
    """Return percentiles of width, height (pixels) and bytes, and formats; {} when there is no image.

    Args:
        seen: records of readable images, as in a Scan.
        enlarged_below: a shorter side below it is enlarged before the model sees it.
    """
    if not len(seen):
        return {}
    short = np.minimum(seen['width'], seen['height'])
    counts = np.bincount(seen['format'], minlength=len(FORMATS))
    return {
        **{
            name: {key: int(value) for key, value in zip(_PERCENTILES, _percentiles(seen[column]), strict=True)}
            for name, column in (('width', 'width'), ('height', 'height'), ('bytes', 'num_bytes'))
        },
        'formats': {name: int(count) for name, count in zip(FORMATS, counts, strict=True) if count},
        'enlarged_below': enlarged_below,
        'enlarged': int((short < enlarged_below).sum()),
    }


def _percentiles(values: np.ndarray) -> np.ndarray:
    return np.percentile(values, list(_PERCENTILES.values()), method='nearest')
