"""Bodies and requests that a service must survive."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

from tests.service.serving import photo


def png_bomb(width: int, height: int) -> bytes:
    """Return a PNG of few bytes that announces many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    rows = zlib.compress(b'\0' * min(width * 3 * height, 1 << 20), 9)
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')


def noise(rng: random.Random) -> bytes:
    """Return a small photo with noise, in any format."""
    pixels = np.frombuffer(rng.randbytes(3 * 24 * 24), np.uint8).reshape(24, 24, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, rng.choice(['JPEG', 'PNG', 'WebP', 'GIF', 'TIFF', 'BMP']))
    return file.getvalue()


def truncated(rng: random.Random) -> bytes:
    data = noise(rng)
    return data[: rng.randrange(max(1, len(data) // 2))]


def bomb(rng: random.Random) -> bytes:
    return png_bomb(rng.choice([30_000, 65_000, 2**31 - 1]), rng.choice([30_000, 65_000, 2**31 - 1]))


def of_another_type(rng: random.Random) -> bytes:
    texts = [
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b'%PDF-1.7',
        b'GIF89a',
        b'\xff\xd8\xff',
        b'RIFF....WEBP',
        b'%!PS',
    ]
    return rng.choice(texts) + rng.randbytes(rng.randrange(200))


def random_bytes(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(2000))


def with_changes(rng: random.Random) -> bytes:
    """Return a photo with a few bytes of its head changed, which may still be decodable."""
    data = bytearray(noise(rng))
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(min(60, len(data)))] = rng.randrange(256)
    return bytes(data)


def damaged_form(rng: random.Random) -> bytes:
    whole = b'--XX\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n' + photo() + b'\r\n--XX--\r\n'
    data = bytearray(whole[: rng.randrange(len(whole) - 8)])
    for _ in range(rng.randrange(3)):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


BODIES = (truncated, bomb, of_another_type, random_bytes, with_changes, damaged_form)
PATHS = (*['/predict', '/features'] * 5, '/feedback?action=relabel&name=x', '/feedback', '/predict?top_k=-1')
KINDS = ('image/jpeg', 'image/png', 'application/octet-stream', 'multipart/form-data; boundary=XX', 'text/html', '')


def request(rng: random.Random) -> bytes:
    """Return a request as a whole, with a hostile body, or a damaged one."""
    make = rng.choice(BODIES)
    body = make(rng)
    kind = 'multipart/form-data; boundary=XX' if make is damaged_form else rng.choice(KINDS)
    length = rng.choice([len(body)] * 8 + [max(0, len(body) - 5), 10**12])
    lines = [f'POST {rng.choice(PATHS)} HTTP/1.1', 'Host: x']
    lines += [f'Content-Length: {length}', 'Connection: close'] + ([f'Content-Type: {kind}'] if kind else [])
    data = '\r\n'.join(lines).encode() + b'\r\n\r\n' + body
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data))]
    elif rng.random() < 0.1:
        data = rng.randbytes(5) + data
    return data
