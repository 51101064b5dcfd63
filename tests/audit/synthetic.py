"""Synthetic images, near copies of them, and unreadable files."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance


def synthetic_image(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """Return an image of colored shapes; each seed gives another one."""
    random = np.random.default_rng(seed)
    image = Image.new('RGB', (width, height), tuple(random.integers(40, 220, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = random.uniform(-0.2, 0.9, 2) * (width, height)
        side = random.uniform(0.15, 0.5) * height
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        shape((x, y, x + side, y + side), fill=tuple(random.integers(0, 256, 3).tolist()))
    return image


def encode(image: Image.Image, file_format: str = 'JPEG', **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def add_stamp(image: Image.Image) -> Image.Image:
    """Return the image with a shop's name in the lower right corner."""
    image = image.copy()
    width, height = image.size
    box = (int(width * 0.72), int(height * 0.88), width, height)
    ImageDraw.Draw(image).rectangle(box, fill='white')
    ImageDraw.Draw(image).text((box[0] + 2, box[1]), 'SHOP', fill='red')
    return image


NEAR_COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    'quality 50': lambda image: encode(image, quality=50),
    'quality 95': lambda image: encode(image, quality=95),
    'half the size': lambda image: encode(image.resize((image.width // 2, image.height // 2)), quality=85),
    'brighter': lambda image: encode(ImageEnhance.Brightness(image).enhance(1.08), quality=85),
    'darker': lambda image: encode(ImageEnhance.Brightness(image).enhance(0.88), quality=85),
    'stamped': lambda image: encode(add_stamp(image), quality=85),
    'WebP': lambda image: encode(image, 'WEBP', quality=80),
}


def png_header_only(width: int, height: int) -> bytes:
    """Return a PNG with a header of this size and almost no pixel data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b'')


def jpeg_with_wrong_height() -> bytes:
    """Return a JPEG of 120 x 90 whose header has four times the height."""
    data = bytearray(encode(synthetic_image(1)))
    position = data.index(b'\xff\xc0') + 5
    data[position : position + 2] = struct.pack('>H', 360)
    return bytes(data)


def jpeg_with_extra_bytes() -> bytes:
    """Return a JPEG with extra bytes after its scan: its pixels are complete."""
    data = encode(synthetic_image(888))
    return data[:-2] + b'\1' * 40 + data[-2:]


def truncate(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


UNREADABLE: dict[str, bytes] = {
    'truncated.jpg': truncate(encode(synthetic_image(1))),
    'truncated.png': truncate(encode(synthetic_image(1), 'PNG')),
    'empty.jpg': b'',
    'lying.jpg': jpeg_with_wrong_height(),
    'lying.png': png_header_only(100, 100),
    'bomb.png': png_header_only(100_000, 100_000),
    'eps.jpg': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n',
    'svg.jpg': b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    'html.jpg': b'<html>404 not found</html>',
    'two_bytes.jpg': b'\xff\xd8',
}
