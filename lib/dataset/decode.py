"""Image decoder: bytes of a file to an upright RGB image, from any mode and few formats, at a limited cost."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from lib.dataset.decode_cost import (
    IN_PLACE_SECONDS,
    DecodeError,
    TooLargeError,
    check_memory,
    decodes_in_place,
    opens_in_place,
)
from lib.dataset.decode_process import run_apart
from lib.dataset.image_file import holds_all_rows, with_ended_pixels, without_metadata
from lib.dataset.image_format import HEADER_BYTES, HEIC_HINT, can_read_heic, image_format
from lib.dataset.jpeg_file import START, JpegFile
from lib.dataset.upright_rgb import no_warnings, orientation, pixels_of, to_rgb, upright

# Pillow tries these plugins only, whatever the file is named: EPS, for example, would start Ghostscript.
# They are imported here, or Pillow would import all its plugins at the first WebP. JPEG includes MPO: its first image.
FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        TiffImagePlugin.TiffImageFile,
        AvifImagePlugin.AvifImageFile,
        Jpeg2KImagePlugin.Jpeg2KImageFile,
    )
)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded in parallel already, by worker processes
MAX_SIDE = 10_000_000  # pixels; Pillow cannot copy rows of 67 million
MAX_PIXELS = 178_000_000  # no photo is that large; fewer where the limit of memory allows fewer

_REASONS = {'decoder error -9': 'needs more memory to decode than it may use'}  # Pillow's words: better ones


class _NotInPlace(Exception):
    """Decoding may take much memory or time."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to RGB, upright.

    The first frame of an animation is decoded. Transparent pixels are composed with white, the background of
    catalogs; 16-bit samples are scaled to 8 bits, not clipped; CMYK is read as Adobe writes it.

    Raises:
        DecodeError: the bytes are empty, of a format outside `FORMATS`, damaged, truncated, of more than `max_pixels`
            pixels (according to the header, before any pixel is decoded), or would take too much memory or time.
    """
    try:
        return _decode(data, max_pixels)
    except _NotInPlace:
        return Image.fromarray(run_apart(_decode_anyway, data, max_pixels)[0])


def decode_pixels(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the pixels of `decode`, uint8 (height, width, 3). Raises: DecodeError."""
    try:
        return pixels_of(_decode(data, max_pixels))
    except _NotInPlace:
        return run_apart(_decode_anyway, data, max_pixels)[0]


def _decode_anyway(data: bytes, max_pixels: int) -> tuple[np.ndarray, str]:
    """Decode in a decoder process."""
    return pixels_of(_decode(data, max_pixels, in_place=False)), ''


def _decode(data: bytes, max_pixels: int, *, in_place: bool = True) -> Image.Image:
    """Raises: _NotInPlace, with `in_place`; DecodeError."""
    if not data:
        raise DecodeError('the file is empty')
    try:
        with no_warnings():
            image = _load(data, max_pixels, in_place)
            if orientation(image) != 1:
                check_memory(image, len(data), is_turned=True, to_array=False)
            return to_rgb(upright(image))
    except (DecodeError, MemoryError, _NotInPlace):
        raise
    except UnidentifiedImageError as error:
        raise DecodeError(f'no readable image of a known format ({", ".join(FORMATS)})') from error
    except Image.DecompressionBombError:  # from twice Pillow's limit on, of which it warns
        raise TooLargeError(f'more than the {max_pixels:,} pixels that are allowed') from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise DecodeError(_REASONS.get(reason, reason)) from error


def check_size(size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Raise DecodeError if an image of (width, height) has no pixel, TooLargeError if it has more than `max_pixels`."""
    width, height = size
    if width < 1 or height < 1:
        raise DecodeError(f'the header announces {width} x {height} pixels')
    if max(size) > MAX_SIDE:
        raise TooLargeError(f'{width} x {height} pixels; at most {MAX_SIDE:,} a side are allowed')
    if width * height > max_pixels:
        raise TooLargeError(f'{width} x {height} pixels; at most {max_pixels:,} are allowed')


def read_format(data: bytes) -> tuple[str, int, int]:
    """Read the header of an image file: Pillow's name of the format, and width and height as stored.

    Raises: DecodeError, if the size is not allowed; exceptions of Pillow's parsers.
    """
    if data.startswith(START) or opens_in_place(data):
        return _read_format(data)
    name, width, height = run_apart(_read_format_anyway, data)[1].split()
    return name, int(width), int(height)


def _read_format(data: bytes) -> tuple[str, int, int]:
    with no_warnings():
        pixels = JpegFile(data).without_metadata() if data.startswith(START) else without_metadata(data)[0]
        image = _open(pixels, {}, MAX_PIXELS)
    return str(image.format), image.width, image.height


def _read_format_anyway(data: bytes) -> tuple[np.ndarray, str]:
    """Read the header in a decoder process."""
    try:
        return np.empty(0, np.uint8), '{} {} {}'.format(*_read_format(data))
    except (DecodeError, MemoryError):
        raise
    except Exception as error:
        raise DecodeError(' '.join(str(error).split())) from error


def _open(data: bytes, metadata: dict[str, Any], max_pixels: int) -> ImageFile.ImageFile:
    image = Image.open(BytesIO(data), formats=_formats_for(data))
    check_size(image.size, max_pixels)
    image.info.update(metadata)
    return image


def _load(data: bytes, max_pixels: int, in_place: bool) -> Image.Image:
    """Decode all pixels.

    Raises: _NotInPlace; DecodeError or ValueError for missing ones, which Pillow leaves gray or black; Pillow's
    exceptions.
    """
    if data.startswith(START):
        return _load_jpeg(data, max_pixels, in_place)
    if in_place and not opens_in_place(data):
        if image_format(data[:HEADER_BYTES]) == 'HEIC' and not can_read_heic():
            raise DecodeError(f'a HEIC image; {HEIC_HINT}')
        raise _NotInPlace
    pixels, metadata = without_metadata(data)
    image = _open(pixels, metadata, max_pixels)
    if in_place and not decodes_in_place(image, len(data)):
        raise _NotInPlace
    check_memory(image, len(data))
    if image.format != 'PNG':
        image.load()
        return image
    try:
        image.load()
    except OSError:
        ended = with_ended_pixels(pixels)
        if ended is None:
            raise
        image = _open(ended, metadata, max_pixels)
        image.load()
    if _may_lack_rows(image) and not holds_all_rows(pixels):
        raise DecodeError('rows are missing that the header announces')
    return image


def _load_jpeg(data: bytes, max_pixels: int, in_place: bool) -> Image.Image:
    jpeg = JpegFile(data)
    image = _open(jpeg.without_metadata(), jpeg.header.metadata, max_pixels)
    if jpeg.seconds() > IN_PLACE_SECONDS and in_place:
        raise _NotInPlace
    check_memory(image, len(data), coefficient_bytes=jpeg.header.coefficient_bytes, to_array=not in_place)
    image.load()
    jpeg.check_data()
    return image


def _may_lack_rows(image: Image.Image) -> bool:
    """Return True if rows of a loaded PNG may be missing: its last row is all zeros, or was not the last to be read."""
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    return bool(image.info.get('interlace')) or not np.asarray(last_row).any()


def _formats_for(data: bytes) -> tuple[str, ...]:
    """Return the formats to try: that of HEIC alone for a HEIC file. Raises: DecodeError without pillow-heif."""
    if image_format(data[:HEADER_BYTES]) != 'HEIC':
        return FORMATS
    try:
        import pillow_heif
    except ImportError:  # not installed, or without the libraries that it needs
        raise DecodeError(f'a HEIC image; {HEIC_HINT}') from None
    pillow_heif.register_heif_opener(decode_threads=1)  # images are decoded in parallel already
    return ('HEIF',)
