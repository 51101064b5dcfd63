"""Lazy images: the size is read from the header, and a JPEG is decoded later, at the smallest sufficient scale."""

from typing import Protocol

import numpy as np
import simplejpeg

from lib.dataset.decode import MAX_PIXELS, check_size, decode_pixels
from lib.dataset.decode_cost import IN_PLACE_SECONDS, check_bytes
from lib.dataset.decode_process import run_apart
from lib.dataset.jpeg_file import START, JpegFile, JpegHeader, read_header
from lib.dataset.turbojpeg import Rectangle, decode_region, is_available, seems_intact
from lib.dataset.upright_rgb import TRANSPOSITIONS, gray_of, orientation_in

_LARGEST_REDUCTION = 8
_LEAST_SIDE = 16  # pixels of a reduced image's shorter side; below, libjpeg cannot distinguish scales

# Regions are decoded alone where that takes less time: parts of photos of 800 px and more.
_LEAST_PIXELS, _LARGEST_PART = 400_000, 0.6


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

    def crop(self, scale: float, box: Rectangle, *, is_only_crop: bool = False) -> np.ndarray:
        """Return the pixels in a box, uint8 RGB (height, width, 3), as `pixels` and `reduced_box` define them.

        Args:
            scale: the smallest sufficient scale.
            box: in pixels of the upright image.
            is_only_crop: no other pixels of this image will be requested, so the others need not be decoded.

        Raises:
            DecodeError: the pixels are damaged or missing.
        """


class LazyPixelImage:
    """An image that is decoded already.

    Attributes:
        warning: '', as it is decoded without one.
    """

    __slots__ = ('_pixels', 'height', 'width')
    warning = ''

    def __init__(self, pixels: np.ndarray) -> None:
        """Set the pixels: uint8 (height, width, 3), RGB, upright."""
        self.height, self.width = pixels.shape[:2]
        self._pixels = pixels

    def pixels(self, scale: float) -> tuple[np.ndarray, int]:
        """Return all pixels, reduction 1."""
        return self._pixels, 1

    def crop(self, scale: float, box: Rectangle, *, is_only_crop: bool = False) -> np.ndarray:
        """Return the pixels in the box."""
        return _cut(self._pixels, box)

    def gray_pixels(self) -> np.ndarray:
        """Return all pixels in grayscale, uint8 (height, width)."""
        return gray_of(self._pixels)


class LazyJpegImage:
    """A JPEG of which the header has been read.

    libjpeg decodes to a half, a quarter or an eighth by leaving out high frequencies (an antialiased reduction);
    its other scales are slower than no reduction.

    Attributes:
        warning: oddity of the file, found when the pixels were decoded; '' if there was none.
    """

    __slots__ = ('_data', '_decoded', '_header', '_orientation', 'height', 'warning', 'width')

    def __init__(self, data: bytes, header: JpegHeader) -> None:
        """Set the bytes and the header of a file with usual pixels."""
        self._data, self._header = data, header
        self._orientation = orientation_in(header.metadata) if header.metadata else 1
        stored = (header.width, header.height)
        self.width, self.height = stored[::-1] if self._orientation >= 5 else stored
        self.warning = ''
        self._decoded: tuple[int, np.ndarray] | None = None  # reduction and pixels; several views need the same

    @property
    def source(self) -> tuple[bytes, JpegHeader, int]:
        """Return the bytes, the header and the orientation (1 to 8), for another decoder."""
        return self._data, self._header, self._orientation

    def pixels(self, scale: float) -> tuple[np.ndarray, int]:
        """Return the upright pixels at the smallest sufficient scale. Raises: DecodeError."""
        reduction = _reduction(scale, min(self.width, self.height))
        if self._decoded is None or self._decoded[0] != reduction:
            self._decoded = None  # its memory is free before the next pixels need theirs
            self._decoded = reduction, self._decode('RGB', reduction)
        pixels = self._decoded[1]
        return pixels, reduction if pixels.shape[0] < self.height or pixels.shape[1] < self.width else 1

    def crop(self, scale: float, box: Rectangle, *, is_only_crop: bool = False) -> np.ndarray:
        """Return the upright pixels in a box at the smallest sufficient scale. Raises: DecodeError."""
        if is_only_crop and self._decoded is None:
            reduction = _reduction(scale, min(self.width, self.height))
            region = self._decoded_region(reduced_box(box, reduction, self.width, self.height), reduction)
            if region is not None:
                return region
        pixels, reduction = self.pixels(scale)
        return _cut(pixels, reduced_box(box, reduction, self.width, self.height))

    def gray_pixels(self) -> np.ndarray:
        """Return all upright pixels in grayscale, uint8 (height, width). Raises: DecodeError.

        This takes two thirds of the time of color, but still reads every byte, so truncated files are detected.
        """
        return self._decode('GRAY', 1)

    def _decoded_region(self, box: Rectangle, reduction: int) -> np.ndarray | None:
        """Return the upright pixels in a box of the reduced image; None: all pixels are to be decoded."""
        header, data = self._header, self._data
        left, top, right, bottom = box
        num_pixels = header.width * header.height
        is_small_part = (right - left) * (bottom - top) * reduction**2 <= _LARGEST_PART * num_pixels
        if num_pixels < _LEAST_PIXELS or not is_small_part or header.has_several_scans or not is_available():
            return None
        self._check_memory('RGB', reduction)
        if header.seconds(len(data)) > IN_PLACE_SECONDS or not seems_intact(data, header.scan_start):
            return None
        reduced = (-(-self.width // reduction), -(-self.height // reduction))
        try:
            stored = decode_region(data, reduction, _stored_box(box, *reduced, self._orientation))
        except ValueError:
            return None
        return _upright(stored, self._orientation)

    def _check_memory(self, color_space: str, reduction: int) -> None:
        """Raise DecodeError if decoding all pixels needs more memory than allowed."""
        header = self._header
        num_bytes = len(color_space) * -(-header.width // reduction) * -(-header.height // reduction)
        check_bytes(
            2 * len(self._data) + num_bytes + max(header.coefficient_bytes, num_bytes * (self._orientation > 1))
        )

    def _decode(self, color_space: str, reduction: int) -> np.ndarray:
        """Return upright pixels; of a file with an oddity, the reduction may be 1. Raises: DecodeError."""
        header = self._header
        self._check_memory(color_space, reduction)
        try:
            file = JpegFile(self._data) if header.has_several_scans else None
            takes_long = (file.seconds() if file else header.seconds(len(self._data))) > IN_PLACE_SECONDS
        except ValueError:
            return self._decoded_with_care(color_space)
        if takes_long:
            pixels, self.warning = run_apart(decode_jpeg, self._data, color_space, reduction)
            return pixels
        return self.decode_in_place(color_space, reduction, file)

    def decode_in_place(self, color_space: str, reduction: int, file: JpegFile | None) -> np.ndarray:
        """Return upright pixels; `file` is needed if there are several scans. Raises: DecodeError."""
        try:
            if file is not None:
                file.check_scans()
            return self._simply_decoded(self._data, color_space, reduction)
        except ValueError as error:
            self.warning = ' '.join(str(error).split())
        try:
            file = JpegFile(self._data)
            file.check_scans()
            return self._simply_decoded(file.without_metadata(), color_space, reduction)
        except ValueError:
            return self._decoded_with_care(color_space)

    def _decoded_with_care(self, color_space: str) -> np.ndarray:
        """Return all pixels of a file with an oddity, of which only `decode` distinguishes harmless ones."""
        pixels = decode_pixels(self._data)
        return pixels if color_space == 'RGB' else gray_of(pixels)

    def _simply_decoded(self, data: bytes, color_space: str, reduction: int) -> np.ndarray:
        """Return upright pixels. Raises: ValueError for anything that libjpeg warns about."""
        width, height = self._header.width, self._header.height
        stored = simplejpeg.decode_jpeg(
            data, color_space, min_width=-(-width // reduction), min_height=-(-height // reduction)
        )
        return _upright(stored if color_space == 'RGB' else stored[:, :, 0], self._orientation)


def open_lazy_image(data: bytes, max_pixels: int = MAX_PIXELS) -> LazyPixelImage | LazyJpegImage:
    """Return the image in the bytes of a file. The pixels of a JPEG are decoded later, those of other formats here.

    Raises:
        DecodeError: as `decode`; damage in the pixels of a JPEG is reported when they are requested.
    """
    header = _usual_jpeg_header(data)
    if header is None:
        return LazyPixelImage(decode_pixels(data, max_pixels))
    check_size((header.width, header.height), max_pixels)
    return LazyJpegImage(data, header)


def decode_jpeg(data: bytes, color_space: str, reduction: int) -> tuple[np.ndarray, str]:
    """Return pixels and warning of a usual JPEG, in a decoder process. Raises: DecodeError."""
    header = read_header(data)
    image = LazyJpegImage(data, header)
    pixels = image.decode_in_place(color_space, reduction, JpegFile(data) if header.has_several_scans else None)
    return pixels, image.warning


def _usual_jpeg_header(data: bytes) -> JpegHeader | None:
    """Return the header of a JPEG that simplejpeg can decode to RGB and gray, else None."""
    if not data.startswith(START):
        return None
    try:
        header = read_header(data)
    except ValueError:
        return None
    return header if header.is_usual else None


def _reduction(scale: float, shorter_side: int) -> int:
    reduction = 1
    while reduction < _LARGEST_REDUCTION and 2 * reduction * scale <= 1 and shorter_side >= 2 * reduction * _LEAST_SIDE:
        reduction *= 2
    return reduction


def reduced_box(box: Rectangle, reduction: int, width: int, height: int) -> Rectangle:
    """Return the box in pixels of the reduced image; an edge within a pixel is moved to the nearer side.

    Args:
        width, height: width and height of the image before it is reduced.
    """
    left, top, right, bottom = box
    if reduction > 1:
        left = min(round(left / reduction), -(-width // reduction) - 1)
        top = min(round(top / reduction), -(-height // reduction) - 1)
        right, bottom = max(left + 1, round(right / reduction)), max(top + 1, round(bottom / reduction))
    return left, top, right, bottom


def _cut(pixels: np.ndarray, box: Rectangle) -> np.ndarray:
    left, top, right, bottom = box
    return pixels[top:bottom, left:right]


def _stored_box(box: Rectangle, width: int, height: int, orientation: int) -> Rectangle:
    """Return the box that `_upright` turns to a box of the upright image of this width and height."""
    left, top, right, bottom = box
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    if orientation in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation >= 5 else (left, top, right, bottom)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the camera's rotation (TIFF 6.0, page 36), by a copy if there is one."""
    if orientation not in TRANSPOSITIONS:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)  # 5: the main diagonal
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
