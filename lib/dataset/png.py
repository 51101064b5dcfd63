"""Whether a PNG holds all the rows that its header announces: Pillow silently leaves missing ones black."""

import struct
import zlib
from collections.abc import Iterator

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
