"""Pictures for the doctor, and what can be wrong with their files."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance


def drawn(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """Return a picture of coloured shapes, like no other seed's."""
    random = np.random.default_rng(seed)
    image = Image.new('RGB', (width, height), tuple(random.integers(40, 220, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = random.uniform(-0.2, 0.9, 2) * (width, height)
        side = random.uniform(0.15, 0.5) * height
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        shape((x, y, x + side, y + side), fill=tuple(random.integers(0, 256, 3).tolist()))
    return image


def encoded(image: Image.Image, file_format: str = 'JPEG', **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def stamped(image: Image.Image) -> Image.Image:
    """A shop's name in the lower right corner."""
    image = image.copy()
    width, height = image.size
    box = (int(width * 0.72), int(height * 0.88), width, height)
    ImageDraw.Draw(image).rectangle(box, fill='white')
    ImageDraw.Draw(image).text((box[0] + 2, box[1]), 'SHOP', fill='red')
    return image


NEAR_COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    'quality 50': lambda image: encoded(image, quality=50),
    'quality 95': lambda image: encoded(image, quality=95),
    'half the size': lambda image: encoded(image.resize((image.width // 2, image.height // 2)), quality=85),
    'brighter': lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.08), quality=85),
    'darker': lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.88), quality=85),
    'stamped': lambda image: encoded(stamped(image), quality=85),
    'WebP': lambda image: encoded(image, 'WEBP', quality=80),
}


def png_announcing(width: int, height: int) -> bytes:
    """A PNG whose header is all there is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b'')


def lying_jpeg() -> bytes:
    """A JPEG of 120 x 90 whose header says four times the height."""
    data = bytearray(encoded(drawn(1)))
    place = data.index(b'\xff\xc0') + 5
    data[place : place + 2] = struct.pack('>H', 360)
    return bytes(data)


def odd_jpeg() -> bytes:
    """A JPEG with some bytes too many behind its scan: its pixels are whole."""
    data = encoded(drawn(888))
    return data[:-2] + b'\1' * 40 + data[-2:]


def truncated(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


UNREADABLE: dict[str, bytes] = {
    'truncated.jpg': truncated(encoded(drawn(1))),
    'truncated.png': truncated(encoded(drawn(1), 'PNG')),
    'empty.jpg': b'',
    'lying.jpg': lying_jpeg(),
    'lying.png': png_announcing(100, 100),
    'bomb.png': png_announcing(100_000, 100_000),
    'eps.jpg': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n',
    'svg.jpg': b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    'html.jpg': b'<html>404 not found</html>',
    'two_bytes.jpg': b'\xff\xd8',
}
