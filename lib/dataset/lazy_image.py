"""Lazy images: the size is read from the header, and a JPEG is decoded later, at the smallest sufficient scale."""

from typing import Protocol

import numpy as np
import simplejpeg

from lib.dataset.decode import MAX_PIXELS, TRANSPOSITIONS, check_size, decode, orientation_of

# Color spaces that simplejpeg converts to RGB; Pillow decodes CMYK and YCCK, inverted or not.
_SIMPLE_SPACES = ('Gray', 'YCbCr', 'RGB')
_LARGEST_REDUCTION = 8
_LEAST_SIDE = 16  # pixels of a reduced image's shorter side; below, libjpeg cannot distinguish scales
_START_OF_SCAN, _APP1 = 0xDA, 0xE1


class LazyImage(Protocol):
    """An upright image, decoded when its pixels are requested.

    Attributes:
        width, height: pixels.
    """

    width: int
    height: int

    def pixels(self, scale: float) -> tuple[np.ndarray, int]:
        """Return uint8 RGB (height / r, width / r, 3), rounded up, and the reduction r: 1, 2, 4 or 8.

        Args:
            scale: the smallest sufficient scale: 1 / r is at least this.

        Raises:
            DecodeError: the pixels are damaged or missing.
        """


class LazyPixelImage:
    """An image that is decoded already."""

    __slots__ = ('_pixels', 'height', 'width')

    def __init__(self, pixels: np.ndarray) -> None:
        """Set the pixels: uint8 (height, width, 3), RGB, upright."""
        self.height, self.width = pixels.shape[:2]
        self._pixels = pixels

    def pixels(self, scale: float) -> tuple[np.ndarray, int]:
        """Return all pixels, reduction 1."""
        return self._pixels, 1


class LazyJpegImage:
    """A JPEG of which the header has been read.

    libjpeg decodes to a half, a quarter or an eighth by leaving out high frequencies (an antialiased reduction);
    its other scales are slower than no reduction.
    """

    __slots__ = ('_data', '_orientation', '_stored', 'height', 'width')

    def __init__(self, data: bytes, width: int, height: int, orientation: int) -> None:
        """Set the file's bytes, its size as stored (not upright), and EXIF's orientation, 1 to 8."""
        self._data = data
        self._stored = (width, height)
        self._orientation = orientation
        self.width, self.height = (height, width) if orientation >= 5 else (width, height)

    def pixels(self, scale: float) -> tuple[np.ndarray, int]:
        """Return the upright pixels at the smallest sufficient scale. Raises: DecodeError."""
        width, height = self._stored
        reduction = _reduction(scale, min(width, height))
        try:
            stored = simplejpeg.decode_jpeg(
                self._data, 'RGB', min_width=-(-width // reduction), min_height=-(-height // reduction)
            )
        except ValueError:
            # simplejpeg raises for harmless oddities too: Pillow decides, and its reason becomes the message.
            return np.asarray(decode(self._data)), 1
        return _upright(stored, self._orientation), reduction


def open_lazy_image(data: bytes, max_pixels: int = MAX_PIXELS) -> LazyImage:
    """Return the image in the bytes of a file. The pixels of a JPEG are decoded later, those of other formats here.

    Raises:
        DecodeError: as `decode`; damage in the pixels of a JPEG is reported when they are requested.
    """
    size = _jpeg_size(data)
    if size is None:
        return LazyPixelImage(np.asarray(decode(data, max_pixels)))
    check_size(size, max_pixels)
    return LazyJpegImage(data, *size, jpeg_orientation(data))


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG that simplejpeg can decode, else None."""
    if data[:2] != b'\xff\xd8':
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if space in _SIMPLE_SPACES else None


def jpeg_orientation(data: bytes) -> int:
    """Return EXIF's orientation; 1 where a JPEG has no metadata, which is found without Pillow."""
    offset = 2
    while offset + 4 <= len(data) and data[offset] == 0xFF and data[offset + 1] != _START_OF_SCAN:
        if data[offset + 1] == _APP1:
            return orientation_of(data)
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], 'big')
    return 1


def _reduction(scale: float, shorter_side: int) -> int:
    reduction = 1
    while reduction < _LARGEST_REDUCTION and 2 * reduction * scale <= 1 and shorter_side >= 2 * reduction * _LEAST_SIDE:
        reduction *= 2
    return reduction


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the camera's rotation (TIFF 6.0, page 36), by a copy if there is one."""
    if orientation not in TRANSPOSITIONS:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)  # 5: the main diagonal
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
