"""Hostile images: files that are small and ask for much memory or time, made by code or written byte by byte.

And honest large photos, which must be decoded. Fields and their order are those of the formats' specifications.
"""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    """Return an image with detail of every size."""
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(pixels ^ random.integers(0, 16, pixels.shape, dtype=np.uint8))


# JPEG (ITU T.81). Every table has one code of one bit, so zeros are blocks without a coefficient.
def segment(marker: int, content: bytes) -> bytes:
    """Return a segment."""
    return bytes((0xFF, marker)) + struct.pack('>H', len(content) + 2) + content


def jpeg_scan(components: bytes, first: int, last: int, bits: int, data: bytes) -> bytes:
    """Return a scan of some components and coefficients."""
    header = bytes((len(components), *(byte for component in components for byte in (component, 0)), first, last, bits))
    return segment(0xDA, header) + data


def jpeg(width: int, height: int, frame: int, scans: bytes, factors: bytes = b'\x11', extra: bytes = b'') -> bytes:
    """Return a file of given scans."""
    components = b''.join(bytes((number + 1, factor, 0)) for number, factor in enumerate(factors))
    tables = segment(0xDB, b'\0' + b'\1' * 64)
    for number, value in ((0x00, 0), (0x10, 0 if frame in (0xC0, 0xC1) else 0xE0)):
        tables += segment(0xC4, bytes((number, 1, *(0,) * 15, value)))
    header = segment(frame, struct.pack('>BHHB', 8, height, width, len(factors)) + components)
    return b'\xff\xd8' + extra + tables + header + scans + b'\xff\xd9'


def progressive(side: int, num_scans: int, frame: int = 0xC2) -> bytes:
    """Return a gray file whose scans have no data."""
    return jpeg(side, side, frame, jpeg_scan(b'\1', 0, 0, 0, b'\0') + jpeg_scan(b'\1', 1, 63, 0, b'') * num_scans)


def empty_runs(num_blocks: int) -> bytes:
    """Return the data of a scan: runs of 32,767 empty blocks, each a code of one bit and 14 bits."""
    bits = np.tile(np.array([0, *(1,) * 14], np.uint8), -(-num_blocks // 32_767))
    padded = np.append(bits, np.ones(-len(bits) % 8, np.uint8))
    return np.packbits(padded).tobytes().replace(b'\xff', b'\xff\0')


def repeated(side: int, num_scans: int, *, refining: bool = False) -> bytes:
    """Return a gray progressive file whose scans pass through all blocks and find nothing."""
    runs = empty_runs(side * side // 64)
    scans = jpeg_scan(b'\1', 0, 0, 0, bytes(side * side // 512)) + jpeg_scan(b'\1', 1, 63, int(refining), runs)
    return jpeg(side, side, 0xC2, scans + jpeg_scan(b'\1', 1, 63, 0x10 * refining, runs) * num_scans)


def exif_entries() -> bytes:
    """Return EXIF with entries that share 60 kB each."""
    entries = b''.join(struct.pack('<HHII', 0x100 + number, 7, 60_000, 8) for number in range(5000))
    return b'Exif\0\0II*\0' + struct.pack('<IH', 8, 5000) + entries + bytes(4)


def many_exif_segments(number: int, size: int) -> bytes:
    """Return many segments of EXIF, which are joined."""
    return segment(0xE1, b'Exif\0\0' + b'\1' * size) * number


# PNG.
def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk."""
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def png(
    width: int, height: int, depth: int, color: int, *, interlaced: int = 0, chunks: bytes = b'', pixels: bytes = b''
) -> bytes:
    """Return a file of black pixels, or of given deflated bytes."""
    if not pixels:
        bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
        num_bytes = height * (1 + -(-width * bits // 8)) * (2 if interlaced else 1)
        deflate, parts = zlib.compressobj(9), []
        for start in range(0, num_bytes, 1 << 24):
            parts.append(deflate.compress(bytes(min(1 << 24, num_bytes - start))))
        pixels = b''.join((*parts, deflate.flush()))
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, interlaced))
    return b'\x89PNG\r\n\x1a\n' + header + chunks + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


def empty_deflate_blocks(num_blocks: int) -> bytes:
    """Return deflated data of blocks that have a code each and no content: 11 bytes that take a microsecond."""
    value = length = 0
    for bits, width in ((0, 1), (2, 2), (0, 10), (14, 4), *_code_lengths(), (1, 1), (127, 7), (1, 1), (107, 7), (0, 3)):
        value |= bits << length
        length += width
    block = [value >> position & 1 for position in range(length)]
    eight = np.array(block * 8, np.uint8)
    return b'\x78\x01' + np.packbits(eight, bitorder='little').tobytes() * (num_blocks // 8)


def _code_lengths() -> list[tuple[int, int]]:
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1)
    return [(1 if symbol in (1, 18) else 0, 3) for symbol in order]


# GIF.
def gif(width: int, height: int, data: bytes, *, screen: tuple[int, int] | None = None, control: bytes = b'') -> bytes:
    """Return a file of one frame of given blocks."""
    head = b'GIF89a' + struct.pack('<HHBBB', *(screen or (width, height)), 0x80, 0, 0) + bytes(6) + control
    return head + b',' + struct.pack('<HHHHB', 0, 0, width, height, 0) + b'\2' + data + b'\0;'


def gif_blocks(data: bytes, size: int = 255) -> bytes:
    """Return data in blocks of a size."""
    return b''.join(bytes((len(part),)) + part for part in (data[i : i + size] for i in range(0, len(data), size)))


# TIFF.
def tiff(tags: dict[int, tuple[int, list[int]]], data: bytes) -> bytes:
    """Return a little-endian file: data at offset 8, then values and the directory. Tags: tag -> (type, values)."""
    formats = {3: 'H', 4: 'I'}
    body, entries = bytearray(b'II*\0\0\0\0\0' + data), b''
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f'<{len(values)}{formats[kind]}', *values)
        if len(packed) > 4:
            entries += struct.pack('<HHII', tag, kind, len(values), len(body))
            body += packed
        else:
            entries += struct.pack('<HHI', tag, kind, len(values)) + packed.ljust(4, b'\0')
    struct.pack_into('<I', body, 4, len(body))
    return bytes(body) + struct.pack('<H', len(tags)) + entries + bytes(4)


def tiff_strips(width: int, height: int, compression: int, rows: int, data: bytes, **more: int) -> bytes:
    """Return a gray TIFF whose strips all share the same data."""
    number = -(-height // rows)
    tags = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [8]), 259: (3, [compression]), 262: (3, [1]), 277: (3, [1]),
        273: (4, [8] * number), 278: (4, [rows]), 279: (4, [len(data)] * number),
    }  # fmt: skip
    return tiff(tags, data)


def tiff_tile(width: int, height: int, tile: int, data: bytes) -> bytes:
    """Return a gray TIFF of deflated tiles, larger than the image."""
    tags = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [8]), 259: (3, [8]), 262: (3, [1]), 277: (3, [1]),
        322: (4, [tile]), 323: (4, [tile]), 324: (4, [8]), 325: (4, [len(data)]),
    }  # fmt: skip
    return tiff(tags, data)


def bmp(width: int, height: int, compression: int, bits: int, data: bytes) -> bytes:
    """Return a bitmap with a palette."""
    palette = bytes(4 << bits) if bits <= 8 else b''
    offset = 54 + len(palette)
    info = struct.pack('<IiiHHIIiiII', 40, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)
    return b'BM' + struct.pack('<IHHI', offset + len(data), 0, 0, offset) + info + palette + data


def jpeg2000_tiles(width: int, height: int, tile: int) -> bytes:
    """Return a code stream that announces many tiles and has the header of one."""
    size = struct.pack('>HIIIIIIIIH', 0, width, height, 0, 0, tile, tile, 0, 0, 1) + bytes((7, 1, 1))
    coding = bytes((0, 0)) + struct.pack('>H', 65_535) + bytes((0, 5, 4, 4, 0, 1))
    quantization = bytes((0x40, *(64,) * 16))
    tile_part = segment(0x90, struct.pack('>HIBB', 0, 0, 0, 1)) + b'\xff\x93'
    return b'\xff\x4f' + segment(0x51, size) + segment(0x52, coding) + segment(0x5C, quantization) + tile_part


def png16(width: int, height: int) -> bytes:
    """Return a 16-bit color PNG of noise."""
    rows = np.random.default_rng(0).integers(0, 256, (height, width * 6 + 1), dtype=np.uint8)
    rows[:, 0] = 0
    return png(width, height, 16, 2, pixels=zlib.compress(rows.tobytes(), 1))


def animation(image: Image.Image) -> bytes:
    """Return an animated WebP of two frames."""
    return save(image, 'WEBP', method=0, save_all=True, append_images=[Image.new(image.mode, image.size, 'red')])


def turned_jpeg(side: int) -> bytes:
    """Return a photo that is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(Image.new('RGB', (side, side)), 'JPEG', exif=exif)


def heic(width: int, height: int) -> bytes:
    """Return a HEIC image; without pillow-heif, nothing."""
    try:
        import pillow_heif
    except ImportError:
        return b''
    pillow_heif.register_heif_opener()
    return save(Image.new('RGB', (width, height)), 'HEIF', quality=10)


FLAT = 13_340  # side of an image just within the limit of pixels

BOMBS: dict[str, Callable[[], bytes]] = {
    'JPEG, an honest photo of 100 MP': lambda: save(noise(11_600, 8_640), 'JPEG', quality=90),
    'JPEG, an honest progressive photo of 48 MP': lambda: save(noise(8000, 6000), 'JPEG', quality=90, progressive=True),
    'PNG, an honest 16-bit one of 24 MP': lambda: png16(6000, 4000),
    'JPEG, 178 MP, turned': lambda: turned_jpeg(FLAT),
    'JPEG, 178 MP, CMYK': lambda: save(Image.new('CMYK', (FLAT, FLAT)), 'JPEG'),
    'JPEG, 178 MP, progressive 4:4:4': lambda: save(
        Image.new('RGB', (FLAT, FLAT)), 'JPEG', progressive=True, subsampling=0
    ),
    'JPEG, 20,000 empty scans of 17 MP': lambda: progressive(4096, 20_000),
    'JPEG, 3,000 empty scans of 17 MP': lambda: progressive(4096, 3_000),
    'JPEG, 60,000 empty scans of 1 MP': lambda: progressive(1024, 60_000),
    'JPEG, 1,000 refining scans of 17 MP': lambda: repeated(4096, 1000, refining=True),
    'JPEG, 5,000 arithmetic scans of 17 MP': lambda: progressive(4096, 5000, frame=0xCA),
    'JPEG, 5,000 sequential scans of 17 MP': lambda: jpeg(
        4096, 4096, 0xC0, jpeg_scan(b'\1', 0, 63, 0, b'') * 5000, b'\x11\x11\x11'
    ),
    'JPEG, sampled 4 x 4, 1 x 65,500': lambda: jpeg(
        1, 65_500, 0xC2, jpeg_scan(b'\1', 0, 0, 0, b'\0') * 2000, b'\x44\x11\x11'
    ),
    'JPEG, 65,500 x 65,500': lambda: jpeg(65_500, 65_500, 0xC0, jpeg_scan(b'\1', 0, 63, 0, b'\0')),
    'JPEG, 100,000 segments': lambda: jpeg(
        16, 16, 0xC0, jpeg_scan(b'\1', 0, 63, 0, bytes(4)), extra=segment(0xFE, b'') * 10**5
    ),
    'JPEG, EXIF of 3,000 segments (180 MB)': lambda: jpeg(
        16, 16, 0xC0, jpeg_scan(b'\1', 0, 63, 0, bytes(4)), extra=many_exif_segments(3000, 60_000)
    ),
    'JPEG, EXIF whose entries share their bytes': lambda: jpeg(
        16, 16, 0xC0, jpeg_scan(b'\1', 0, 63, 0, bytes(4)), extra=segment(0xE1, exif_entries())
    ),
    'JPEG, 20 million restart markers': lambda: jpeg(
        4096, 4096, 0xC2, jpeg_scan(b'\1', 0, 0, 0, b'\xff\xd0\xff\xd1' * 10**7)
    ),
    'PNG, 178 MP, 1 bit': lambda: png(FLAT, FLAT, 1, 0),
    'PNG, 178 MP, 16-bit RGBA': lambda: png(FLAT, FLAT, 16, 6),
    'PNG, 140 MP, 16-bit RGBA, interlaced': lambda: png(11_800, 11_800, 16, 6, interlaced=1),
    'PNG, 120 MP, palette with transparency': lambda: png(
        11_000, 11_000, 8, 3, chunks=chunk(b'PLTE', bytes(768)) + chunk(b'tRNS', bytes(256))
    ),
    'PNG, 100 MP in one column': lambda: png(1, 100_000_000, 1, 0),
    'PNG, 140 MP in one row': lambda: png(140_000_000, 1, 8, 2),
    'PNG, 45 MB of empty deflate blocks': lambda: png(16, 16, 8, 2, pixels=empty_deflate_blocks(4_000_000)),
    'PNG, 90 MB of empty deflate blocks': lambda: png(16, 16, 8, 2, pixels=empty_deflate_blocks(8_000_000)),
    'PNG, 6 MB of empty chunks': lambda: png(16, 16, 8, 2, chunks=chunk(b'teXt', b'') * 500_000),
    'PNG, 120 MB of empty chunks': lambda: png(16, 16, 8, 2, chunks=chunk(b'teXt', b'') * 10**7),
    'PNG, text that inflates to 1 GB': lambda: png(
        16, 16, 8, 2, chunks=chunk(b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(bytes(10**9), 9)) * 3
    ),
    'PNG, pixels that inflate to 1 GB': lambda: png(16, 16, 8, 2, pixels=zlib.compress(bytes(10**9), 9)),
    'GIF, 140 MP': lambda: save(Image.new('P', (11_800, 11_800)), 'GIF'),
    'GIF, 65,535 x 65,535': lambda: gif(65_535, 65_535, gif_blocks(bytes(100))),
    'GIF, a frame beyond its screen': lambda: gif(65_535, 65_535, gif_blocks(bytes(100)), screen=(4, 4)),
    'GIF, 100 MB of clear codes': lambda: gif(4000, 4000, gif_blocks(b'\x24\x49\x92' * 33_000_000)),
    'GIF, 30 million blocks of a byte': lambda: gif(4000, 4000, b'\1\x24' * 30_000_000),
    'TIFF, 178 MP, deflate': lambda: save(Image.new('RGB', (FLAT, FLAT)), 'TIFF', compression='tiff_adobe_deflate'),
    'TIFF, 140 MP, LZW': lambda: save(Image.new('L', (11_800, 11_800)), 'TIFF', compression='tiff_lzw'),
    'TIFF, 65,000 strips that share 1 MB': lambda: tiff_strips(
        16, 65_000, 8, 1, zlib.compress(bytes(16)) + np.random.default_rng(0).bytes(10**6)
    ),
    'TIFF, 900,000 raw strips of a row': lambda: tiff_strips(16, 900_000, 1, 1, bytes(16)),
    'TIFF, a tile of 65,520 x 65,520': lambda: tiff_tile(16, 16, 65_520, zlib.compress(bytes(10**6))),
    'TIFF, JPEG of 3,000 scans in a strip': lambda: tiff_strips(4096, 4096, 7, 4096, progressive(4096, 3000)),
    'TIFF, LZMA': lambda: save(Image.new('RGB', (11_800, 11_800)), 'TIFF', compression='lzma'),
    'WebP, 178 MP': lambda: save(Image.new('RGB', (16_383, 10_800)), 'WEBP', method=0),
    'WebP, 48 MP, lossless': lambda: save(Image.new('RGB', (8000, 6000)), 'WEBP', lossless=True, method=0),
    'WebP, 40 MP, animated': lambda: animation(Image.new('RGB', (8000, 5000))),
    'AVIF, 64 MP': lambda: save(Image.new('RGB', (8000, 8000)), 'AVIF', speed=10),
    'AVIF, 140 MP': lambda: save(Image.new('RGB', (11_800, 11_800)), 'AVIF', speed=10),
    'JPEG 2000, 64 MP': lambda: save(Image.new('RGB', (8000, 8000)), 'JPEG2000'),
    'JPEG 2000, 65,025 tiles': lambda: jpeg2000_tiles(13_000, 13_000, 51),
    'JPEG 2000, tiles of a pixel': lambda: jpeg2000_tiles(13_000, 13_000, 1),
    'HEIC, 48 MP': lambda: heic(8000, 6000),
    'HEIC, 120 MP': lambda: heic(11_000, 11_000),
    'BMP, run lengths, 170 MP': lambda: bmp(13_000, 13_000, 1, 8, b'\xff\0' * 800_000),
    'BMP, jumps over 255 rows of 100 MP': lambda: bmp(100_000_000, 1, 1, 8, b'\0\2\xff\xff' * 1000),
    'BMP, 20 MB of ends of lines': lambda: bmp(4000, 4000, 1, 8, b'\0\0' * 10**7),
    'BMP, 140 MP, missing': lambda: bmp(11_800, 11_800, 0, 24, bytes(100)),
}  # fmt: skip
