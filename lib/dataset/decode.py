"""Image decoder: bytes of a file to an upright RGB image, from any mode, few formats and a limited number of pixels."""

import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import simplejpeg
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

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
    )
)
HEIF_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1')  # HEIC of phones
MAX_PIXELS = 178_000_000  # about 0.7 GB while decoding; no photo is that large

# libjpeg's messages for missing data. A few extraneous bytes are harmless; more are rows beyond the header's height.
_DAMAGE_MESSAGES = ('remature end', 'instead of RST')
_MAX_EXTRANEOUS_BYTES = 64

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
            image = Image.open(BytesIO(data), formats=_formats_for(data))
            check_size(image.size, max_pixels)
            image.load()
            if image.format in ('JPEG', 'MPO'):
                _check_jpeg(data)
            if image.format == 'PNG' and _may_lack_rows(image) and not holds_all_rows(data):
                raise DecodeError('rows are missing that the header announces')
            return _to_rgb(_upright(image))
    except (DecodeError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise DecodeError(f'no readable image of a known format ({", ".join(FORMATS)}{_heif_hint(data)})') from error
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


def _check_jpeg(data: bytes) -> None:
    """Raise DecodeError for damage that Pillow ignores: it leaves missing rows gray."""
    try:
        _, _, space, _ = simplejpeg.decode_jpeg_header(data)
        # At an eighth of the size, which costs little more than reading the data.
        simplejpeg.decode_jpeg(data, 'CMYK' if space in ('CMYK', 'YCCK') else 'RGB', min_height=1, min_width=1)
    except ValueError as error:
        reason = str(error)
        extraneous = re.search(r'(\d+) extraneous bytes', reason)
        too_long = extraneous and int(extraneous[1]) > _MAX_EXTRANEOUS_BYTES
        if too_long or any(message in reason for message in _DAMAGE_MESSAGES):
            raise DecodeError(reason) from None


def _may_lack_rows(image: Image.Image) -> bool:
    """Return True if rows of a loaded PNG may be missing: its last row is all zeros, or was not the last to be read."""
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    return bool(image.info.get('interlace')) or not np.asarray(last_row).any()


def _formats_for(data: bytes) -> tuple[str, ...]:
    """Return the formats to try: HEIF alone for a HEIF file, if pillow-heif is installed."""
    if not _is_heif(data):
        return FORMATS
    try:
        import pillow_heif
    except ModuleNotFoundError:
        return FORMATS
    pillow_heif.register_heif_opener()
    return ('HEIF',)


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b'ftyp' and data[8:12] in HEIF_BRANDS


def _heif_hint(data: bytes) -> str:
    return '; for HEIC photos: python -m pip install pillow-heif' if _is_heif(data) else ''


def orientation_of(data: bytes) -> int:
    """Return EXIF's orientation of an image file, 1 to 8, without decoding it; 1 where it is absent or broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return _orientation(Image.open(BytesIO(data), formats=FORMATS))
    except Exception:  # as in _orientation
        return 1


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
        return orientation if orientation in TRANSPOSITIONS else 1
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


# PNG rows: Pillow leaves missing ones black without an error.
SIGNATURE_BYTES = 8
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
# Adam7 (PNG specification, section 8.2): first column and row, step in x and y, of each pass.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PIECE_BYTES = 2**20  # inflated at a time, so that counting needs little memory


def holds_all_rows(data: bytes) -> bool:
    """Return True if the pixels of a PNG (of its first image) inflate to as many bytes as its header requires."""
    header = data[SIGNATURE_BYTES + 8 :]
    width, height, bit_depth, color_type, _, _, interlaced = struct.unpack('>IIBBBBB', header[:13])
    expected = _expected_bytes(width, height, bit_depth * CHANNELS[color_type], bool(interlaced))
    num_bytes = 0
    inflate = zlib.decompressobj()
    for deflated in _pixel_chunks(data):
        while deflated and num_bytes < expected and not inflate.eof:
            num_bytes += len(inflate.decompress(deflated, PIECE_BYTES))
            deflated = inflate.unconsumed_tail
    return num_bytes >= expected or num_bytes + len(inflate.flush()) >= expected


def _expected_bytes(width: int, height: int, pixel_bits: int, interlaced: bool) -> int:
    """Return the number of bytes of all rows, each with its filter byte."""
    total = 0
    for left, top, step_x, step_y in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * pixel_bits // 8))
    return total


def _pixel_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the content of the IDAT chunks."""
    offset = SIGNATURE_BYTES
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from('>I4s', data, offset)
        if kind == b'IDAT':
            yield data[offset + 8 : offset + 8 + length]
        offset += length + 12  # length, type, content, checksum
