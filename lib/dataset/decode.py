"""Bytes of a file to an upright RGB image: every mode, but few formats and a limit on the pixels.

Whether a PNG holds all the rows that its header announces: Pillow silently leaves missing ones black.
"""

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

SIGNATURE_BYTES = 8
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Adam7 (PNG specification, section 8.2): first column and row, step in x and y, of each pass.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PIECE_BYTES = 2**20  # inflated at a time, so that counting needs no memory


def holds_all_rows(data: bytes) -> bool:
    """Return whether a PNG's pixels (of its first image) inflate to as many bytes as its header asks for."""
    header = data[SIGNATURE_BYTES + 8 :]
    width, height, bit_depth, color_type, _, _, interlaced = struct.unpack('>IIBBBBB', header[:13])
    announced = _announced_bytes(width, height, bit_depth * CHANNELS[color_type], bool(interlaced))
    found = 0
    inflate = zlib.decompressobj()
    for deflated in _pixel_chunks(data):
        while deflated and found < announced and not inflate.eof:
            found += len(inflate.decompress(deflated, PIECE_BYTES))
            deflated = inflate.unconsumed_tail
    return found >= announced or found + len(inflate.flush()) >= announced


def _announced_bytes(width: int, height: int, pixel_bits: int, interlaced: bool) -> int:
    """Return the bytes of all rows, each with the byte that names its filter."""
    total = 0
    for left, top, step_x, step_y in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * pixel_bits // 8))
    return total


def _pixel_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the content of the IDAT chunks."""
    place = SIGNATURE_BYTES
    while place + 8 <= len(data):
        length, kind = struct.unpack_from('>I4s', data, place)
        if kind == b'IDAT':
            yield data[place + 8 : place + 8 + length]
        place += length + 12  # length, type, content, checksum


# The only plugins that ever see the bytes: EPS would start Ghostscript, so a name's ending decides nothing.
# Imported here, or Pillow would import all its plugins at the first WebP. JPEG includes MPO: its first image.
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

# libjpeg's words for data that is missing; a few bytes too many are harmless, more are rows that the header denies.
_DAMAGE = ('remature end', 'instead of RST')
_MOST_EXTRANEOUS = 64

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
    """These bytes are no usable image. The message is one line and leaves the name to the caller."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to RGB, upright.

    Animations give their first frame. Transparency is laid over white, the background of catalogues; 16-bit
    samples are scaled to 8 bits, not clipped; CMYK is read as Adobe writes it.

    Raises: DecodeError when the bytes are empty, of a format outside `FORMATS`, damaged, cut short, or
    announce more than `max_pixels` pixels (seen in the header, before any pixel is decoded).
    """
    if not data:
        raise DecodeError('the file is empty')
    try:
        with warnings.catch_warnings():
            # Odd metadata in millions of photos: nothing a user could act upon.
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
        raise DecodeError(f'no readable image of a known format ({", ".join(FORMATS)}{_wanting(data)})') from error
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
    """Raise DecodeError for damage that Pillow passes over: where data is missing it leaves rows grey."""
    try:
        _, _, space, _ = simplejpeg.decode_jpeg_header(data)
        # An eighth of the size, so that hardly more is done than reading all of the data.
        simplejpeg.decode_jpeg(data, 'CMYK' if space in ('CMYK', 'YCCK') else 'RGB', min_height=1, min_width=1)
    except ValueError as error:
        reason = str(error)
        extraneous = re.search(r'(\d+) extraneous bytes', reason)
        if any(words in reason for words in _DAMAGE) or (extraneous and int(extraneous[1]) > _MOST_EXTRANEOUS):
            raise DecodeError(reason) from None


def _may_lack_rows(image: Image.Image) -> bool:
    """Return whether a loaded PNG is worth inflating once more: its last row is all zeros, or came early."""
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    return bool(image.info.get('interlace')) or not np.asarray(last_row).any()


def _formats_for(data: bytes) -> tuple[str, ...]:
    """Return the formats to try: HEIF alone for such files, where its package is installed."""
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


def _wanting(data: bytes) -> str:
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
    """Undo the camera's rotation. A loaded TIFF is upright already, and Pillow has then dropped its tag."""
    transposition = TRANSPOSITIONS.get(_orientation(image))
    return image if transposition is None else image.transpose(transposition)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to RGB."""
    if image.mode.startswith('I;16'):
        # The high byte, as Pillow itself does it for 16-bit colour.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert('RGB')
    if image.mode in ('I', 'F'):
        return Image.fromarray(_scale_to_bytes(np.asarray(image))).convert('RGB')
    if image.has_transparency_data:
        layer = image.convert('RGBA')
        white = Image.new('RGBA', layer.size, 'white')
        return Image.alpha_composite(white, layer).convert('RGB')
    return image if image.mode == 'RGB' else image.convert('RGB')


def _scale_to_bytes(samples: np.ndarray) -> np.ndarray:
    """Scale 32-bit integers or floats, whose files name no white, to uint8.

    White is the least customary value that nothing exceeds: 65535 for integers, 1, 255 or 65535 for floats;
    beyond those the brightest sample. Negative samples and NaN are black.
    """
    is_integer = np.issubdtype(samples.dtype, np.integer)
    samples = np.nan_to_num(samples.astype(np.float32), nan=0.0, posinf=None, neginf=0.0)
    brightest = float(samples.max())
    whites = (65535.0,) if is_integer else (1.0, 255.0, 65535.0)
    white = next((value for value in whites if brightest <= value), brightest)
    return np.rint(np.clip(samples / white, 0.0, 1.0) * 255.0).astype(np.uint8)
