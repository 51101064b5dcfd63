"""PNG, WebP, GIF, TIFF and AVIF files: the part that determines the pixels, without unused metadata.

Decoders reject files for faults of what they don't need: checksums of texts, profiles that inflate to gigabytes, short
fields, chunks cut off at the end. Here nothing but EXIF, XMP and what determines the pixels is read.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

from PIL import PngImagePlugin

from lib.dataset.image_format import HEADER_BYTES, image_format


def without_metadata(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Return a file of the same pixels, and what was removed of EXIF and XMP, named as in Pillow's `Image.info`.

    Raises:
        ValueError: pixels are missing.
    """
    shorten = _SHORTENERS.get(image_format(data[:HEADER_BYTES]) or '')
    if shorten is None:
        return data, {}
    try:
        return shorten(data)
    except (IndexError, KeyError, struct.error):
        return data, {}  # a damaged header: Pillow words the reason


# PNG (PNG specification, third edition).
PNG = b'\x89PNG\r\n\x1a\n'
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
# Adam7 (section 8.2): first column and row, step in x and y, of each pass.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PIECE_BYTES = 2**20  # inflated at a time, so that counting needs little memory
_CHUNK_TYPE = re.compile(rb'\w{4}')
_TEXTS = (b'tEXt', b'zTXt', b'iTXt')
# Texts in which Pillow finds the orientation, and all that is read of them: their keywords have at most 79 bytes.
_TEXT_KEYWORDS = (b'exif', b'Raw profile type exif', b'XML:com.adobe.xmp')
_LEAST_TRANSPARENCY = {0: 2, 2: 6, 3: 1}  # bytes of tRNS, by color type
_MOST_TRANSPARENCY = 256


def _png_without_metadata(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Keep the header, palette, transparency and pixels of the first image; a missing end is added."""
    parts, pixels = [PNG], []
    metadata: dict[bytes, tuple[bytes, int, int]] = {}
    color_type = data[25] if len(data) > 25 else -1
    for kind, start, end in _png_chunks(data):
        keyword = data[start : start + 80].split(b'\0')[0]
        if kind == b'IDAT':
            pixels.append(data[start:end])
        elif (kind == b'IHDR' and len(parts) == 1) or kind == b'PLTE':
            parts.append(data[start - 8 : end + 4])
        elif kind == b'tRNS':
            if _LEAST_TRANSPARENCY.get(color_type, end) <= end - start <= _MOST_TRANSPARENCY:
                parts.append(_png_chunk(kind, data[start:end]))
        elif kind == b'eXIf':
            metadata[b'exif'] = kind, start, end
        elif kind in _TEXTS and keyword in _TEXT_KEYWORDS:
            metadata[keyword] = kind, start, end
    if not pixels:
        raise ValueError('the file ends before the pixels')
    parts += [_png_chunk(b'IDAT', b''.join(pixels)), _png_chunk(b'IEND', b'')]
    return b''.join(parts), _read_png_metadata(data, metadata)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each chunk, start and end of its content; the last may be cut off."""
    offset = len(PNG)
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from('>I4s', data, offset)
        if not _CHUNK_TYPE.fullmatch(kind):
            return
        start, end = offset + 8, min(offset + 8 + length, len(data))
        yield kind, start, end
        if kind == b'IEND':
            return
        offset = end + 4  # the checksum


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b''.join((struct.pack('>I', len(content)), kind, content, struct.pack('>I', checksum)))


def _read_png_metadata(data: bytes, chunks: dict[bytes, tuple[bytes, int, int]]) -> dict[str, Any]:
    """Read chunks by Pillow, which inflates at most a megabyte of each; one that it rejects is left out."""
    file = BytesIO(data)
    stream = PngImagePlugin.PngStream(file)
    for kind, start, end in chunks.values():
        file.seek(start)
        try:
            stream.call(kind, start, end - start)
        except Exception:  # its parsers fail in many ways
            continue
    return {str(name): value for name, value in stream.im_info.items()}


def holds_all_rows(png: bytes) -> bool:
    """Return True if the pixels of a file without metadata inflate to as many bytes as its header requires."""
    num_bytes, expected = 0, _expected_bytes(png)
    for piece in _inflated(png, zlib.decompressobj()):
        num_bytes += len(piece)
        if num_bytes >= expected:
            return True
    return False


def with_ended_pixels(png: bytes) -> bytes | None:
    """Return a file without metadata with an end of its pixels; None if they have one, or are damaged otherwise.

    Pillow needs bytes after the last row, but of a file that is cut off, the checksum of the rows may be missing.

    Raises:
        ValueError: rows are missing.
    """
    inflate, deflate = zlib.decompressobj(), zlib.compressobj(level=1)
    missing, pixels = _expected_bytes(png), []
    try:
        for piece in _inflated(png, inflate):
            pixels.append(deflate.compress(piece[:missing]))
            missing = max(0, missing - len(piece))
    except zlib.error:
        return None
    if inflate.eof:
        return None
    if missing:
        raise ValueError('rows are missing that the header announces')
    parts = [png[start - 8 : end + 4] for kind, start, end in _png_chunks(png) if kind not in (b'IDAT', b'IEND')]
    ended = _png_chunk(b'IDAT', b''.join((*pixels, deflate.flush())))
    return b''.join((PNG, *parts, ended, _png_chunk(b'IEND', b'')))


def _inflated(png: bytes, inflate: Any) -> Iterator[bytes]:
    """Yield the rows in pieces, at most a piece more than the header requires."""
    missing = _expected_bytes(png)
    start, end = next((start, end) for kind, start, end in _png_chunks(png) if kind == b'IDAT')
    for offset in range(start, end, PIECE_BYTES):
        deflated = png[offset : min(offset + PIECE_BYTES, end)]
        while deflated and missing > -PIECE_BYTES and not inflate.eof:
            piece = inflate.decompress(deflated, PIECE_BYTES)
            missing -= len(piece)
            yield piece
            deflated = inflate.unconsumed_tail
    yield inflate.flush()


def _expected_bytes(png: bytes) -> int:
    """Return the number of bytes of all rows, each with its filter byte."""
    width, height, bit_depth, color_type, _, _, interlaced = struct.unpack_from('>IIBBBBB', png, len(PNG) + 8)
    pixel_bits, total = bit_depth * CHANNELS[color_type], 0
    for left, top, step_x, step_y in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * pixel_bits // 8))
    return total


# WebP (RFC 9649).
_WEBP_PIXELS = (b'VP8 ', b'VP8L', b'ALPH', b'ANIM', b'ANMF')
_WEBP_FEATURES = 0x12  # of VP8X: alpha and animation, without profile, EXIF and XMP
_WEBP_METADATA = {b'EXIF': ('exif', 0x08), b'XMP ': ('xmp', 0x04)}  # names in Pillow, flags in VP8X


def _webp_without_metadata(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Keep the chunks with pixels."""
    parts: list[bytes] = []
    metadata: dict[str, Any] = {}
    flags, offset = 0, 12
    while offset + 8 <= len(data):
        kind, length = struct.unpack_from('<4sI', data, offset)
        content = data[offset + 8 : offset + 8 + length]
        offset += 8 + length + length % 2
        if kind == b'VP8X' and length >= 10:
            flags = content[0]
            content = bytes((flags & _WEBP_FEATURES,)) + content[1:]
        elif kind in _WEBP_METADATA:
            name, flag = _WEBP_METADATA[kind]
            if flags & flag:
                metadata.setdefault(name, content)
        if kind == b'VP8X' or kind in _WEBP_PIXELS:
            if len(content) < length:
                raise ValueError('the file ends before the last pixels')
            parts += [struct.pack('<4sI', kind, length), content, b'\0' * (length % 2)]
    body = b''.join(parts)
    return b''.join((b'RIFF', struct.pack('<I', 4 + len(body)), b'WEBP', body)), metadata


# GIF (version 89a).
_EXTENSION, _IMAGE, _CONTROL = 0x21, 0x2C, 0xF9


def _gif_without_metadata(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Keep the screen, its palette, and the first image with its transparency; an end is added."""
    offset = 13 + _gif_palette_bytes(data[10])
    parts = [data[:offset]]
    control = b''
    while data[offset] != _IMAGE:
        if data[offset] != _EXTENSION:
            offset += 1  # a stray byte, ignored by Pillow too
            continue
        end = _end_of_blocks(data, offset + 2)
        if data[offset + 1] == _CONTROL and data[offset + 2] == 4:
            control = data[offset : offset + 7] + b'\0'
        offset = end
    palette = offset + 10
    end = _end_of_blocks(data, palette + _gif_palette_bytes(data[offset + 9]) + 1)
    return b''.join((*parts, control, data[offset:end], b'\0;')), {}


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _end_of_blocks(data: bytes, offset: int) -> int:
    """Return the offset after a sequence of blocks and its terminator, which may be missing at the end of the data."""
    while offset < len(data) and data[offset]:
        offset += 1 + data[offset]
    if offset > len(data):
        raise ValueError('the file ends before the last pixels')
    return offset + 1


# TIFF (version 6.0; BigTIFF). Tags that determine the pixels: size, samples, colors, compression, strips and tiles,
# palettes, orientation, old and new JPEG, YCbCr; and XMP, in which Pillow finds an orientation.
_TIFF_TAGS = frozenset(
    tag
    for first, last in (
        *((256, 259), (262, 263), (266, 266), (273, 274), (277, 279), (284, 284), (292, 293), (317, 317)),
        *((320, 320), (322, 325), (332, 332), (334, 334), (338, 341), (347, 347), (512, 521), (529, 532)),
        *((700, 700), (50674, 50674)),
    )
    for tag in range(first, last + 1)
)
_XMP_TAG, _BYTE_TYPES = 700, (1, 7)
_BYTE_ORDERS = {b'II*\0': '<', b'MM\0*': '>', b'II+\0': '<', b'MM\0+': '>'}


def _tiff_without_metadata(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Shorten the directory to the tags of the first image that determine its pixels, without a next image.

    It stays where it is: added at the end, it would be read as pixels that are missing there.
    """
    order, is_big = _BYTE_ORDERS[data[:4]], 43 in data[2:4]
    count_format, offset_format, entry_bytes = ('Q', 'Q', 20) if is_big else ('H', 'I', 12)
    offset_position = 8 if is_big else 4
    (offset,) = struct.unpack_from(order + offset_format, data, offset_position)
    (count,) = struct.unpack_from(order + count_format, data, offset)
    start = offset + struct.calcsize(count_format)
    end = start + count * entry_bytes
    if end > len(data):
        raise IndexError('the directory is incomplete')
    entries = []
    for position in range(start, end, entry_bytes):
        tag, kind = struct.unpack_from(order + 'HH', data, position)
        if tag in _TIFF_TAGS and (tag != _XMP_TAG or kind in _BYTE_TYPES):
            entries.append(data[position : position + entry_bytes])
    directory = b''.join(
        (struct.pack(order + count_format, len(entries)), *entries, struct.pack(order + offset_format, 0))
    )
    return b''.join((data[:offset], directory, data[offset + len(directory) :])), {}


# AVIF (an ISO media file): EXIF does not count for the orientation, but libavif rejects a broken one.
_METADATA_ITEM = re.compile(rb'(infe(?:\x02.{7}|\x03.{9}))(Exif|mime)', re.DOTALL)


def _avif_without_metadata(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Make EXIF and XMP items of an unknown type; XMP without EXIF is kept, as Pillow finds an orientation there."""
    has_exif = any(match[2] == b'Exif' for match in _METADATA_ITEM.finditer(data))
    return _METADATA_ITEM.sub(rb'\1skip', data) if has_exif else data, {}


_SHORTENERS: dict[str, Callable[[bytes], tuple[bytes, dict[str, Any]]]] = {
    'PNG': _png_without_metadata,
    'WebP': _webp_without_metadata,
    'GIF': _gif_without_metadata,
    'TIFF': _tiff_without_metadata,
    'AVIF': _avif_without_metadata,
}
