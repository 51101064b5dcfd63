"""Image decoder: bytes of a file to an upright RGB image, from any mode, few formats and a limited number of pixels."""

import warnings
from io import BytesIO
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from lib.dataset.image_file import holds_all_rows, with_ended_pixels, without_metadata
from lib.dataset.image_format import HEADER_BYTES, HEIC_HINT, image_format
from lib.dataset.jpeg_file import START, JpegFile

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
MAX_PIXELS = 178_000_000  # about 0.7 GB while decoding; no photo is that large

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


class DecodeError(Exception):
    """The bytes are not a usable image. The message is one line without the image's name, which the caller adds."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to RGB, upright.

    The first frame of an animation is decoded. Transparent pixels are composed with white, the background of
    catalogs; 16-bit samples are scaled to 8 bits, not clipped; CMYK is read as Adobe writes it.

    Raises:
        DecodeError: the bytes are empty, of a format outside `FORMATS`, damaged, truncated, or of more than
            `max_pixels` pixels (according to the header, before any pixel is decoded).
    """
    if not data:
        raise DecodeError('the file is empty')
    try:
        with warnings.catch_warnings():
            # Warnings about odd metadata in millions of photos are of no use.
            warnings.simplefilter('ignore')
            return _to_rgb(_upright(_load(data, max_pixels)))
    except (DecodeError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise DecodeError(f'no readable image of a known format ({", ".join(FORMATS)})') from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise DecodeError(reason) from error


def check_size(size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Raise DecodeError if an image of (width, height) has no pixel or more than `max_pixels`."""
    width, height = size
    if width < 1 or height < 1:
        raise DecodeError(f'the header announces {width} x {height} pixels')
    if width * height > max_pixels:
        raise DecodeError(f'{width} x {height} pixels; at most {max_pixels:,} are allowed')


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header of an image file: format, size as stored; of its metadata, EXIF and XMP are in `info`.

    Raises: DecodeError, if the size is not allowed; exceptions of Pillow's parsers.
    """
    if data.startswith(START):
        jpeg = JpegFile(data)
        return _open(jpeg.without_metadata(), jpeg.header.metadata, max_pixels)
    return _open(*without_metadata(data), max_pixels)


def _open(data: bytes, metadata: dict[str, Any], max_pixels: int) -> Image.Image:
    image = Image.open(BytesIO(data), formats=_formats_for(data))
    check_size(image.size, max_pixels)
    image.info.update(metadata)
    return image


def _load(data: bytes, max_pixels: int) -> Image.Image:
    """Decode all pixels.

    Raises: DecodeError or ValueError for missing ones, which Pillow leaves gray or black; Pillow's exceptions.
    """
    if data.startswith(START):
        jpeg = JpegFile(data)
        image = _open(jpeg.without_metadata(), jpeg.header.metadata, max_pixels)
        image.load()
        jpeg.check_data()
        return image
    pixels, metadata = without_metadata(data)
    image = _open(pixels, metadata, max_pixels)
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
    pillow_heif.register_heif_opener()
    return ('HEIF',)


def orientation_in(metadata: dict[str, Any]) -> int:
    """Return the orientation of EXIF or else XMP, 1 to 8; 1 where it is absent or broken.

    Args:
        metadata: as in Pillow's `Image.info`.
    """
    image = Image.new('1', (1, 1))
    image.info.update(metadata)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return _orientation(image)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
        return int(orientation) if orientation in TRANSPOSITIONS else 1
    except Exception:  # broken metadata around good pixels; its parser fails in many ways
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """Undo the camera's rotation. A loaded TIFF is upright already: Pillow has removed its tag."""
    transposition = TRANSPOSITIONS.get(_orientation(image))
    return image if transposition is None else image.transpose(transposition)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB."""
    if image.mode.startswith('I;16'):
        # The high byte, as Pillow does for 16-bit color.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert('RGB')
    if image.mode in ('I', 'F'):
        return Image.fromarray(_scale_to_bytes(np.asarray(image))).convert('RGB')
    if image.has_transparency_data:
        layer = image.convert('RGBA')
        white = Image.new('RGBA', layer.size, 'white')
        return Image.alpha_composite(white, layer).convert('RGB')
    return image if image.mode == 'RGB' else image.convert('RGB')


def _scale_to_bytes(samples: np.ndarray) -> np.ndarray:
    """Scale 32-bit integers or floats, whose files don't define white, to uint8.

    White is the smallest usual value that no sample exceeds (65535 for integers; 1, 255 or 65535 for floats), otherwise
    the brightest sample. Negative samples and NaN are black.
    """
    is_integer = np.issubdtype(samples.dtype, np.integer)
    samples = np.nan_to_num(samples.astype(np.float32), nan=0.0, posinf=None, neginf=0.0)
    brightest = float(samples.max())
    whites = (65535.0,) if is_integer else (1.0, 255.0, 65535.0)
    white = next((value for value in whites if brightest <= value), brightest)
    return np.rint(np.clip(samples / white, 0.0, 1.0) * 255.0).astype(np.uint8)
