"""JPEG and PNG files in unusual layouts, made from an image and a seed, each beside an ordinary file of its pixels."""

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

SOF, DHT, SOS, DQT, DNL, COM = (0xC0, 0xC1, 0xC2), 0xC4, 0xDA, 0xDB, 0xDC, 0xFE
EOI = b'\xff\xd9'
LARGE = zlib.compress(bytes(2_200_000))  # more than Pillow inflates
XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


@dataclass
class Case:
    """A file in an unusual layout.

    Attributes:
        data: the file.
        plain: an ordinary file of the same pixels and orientation, which Pillow reads.
        is_whole: False if pixels are missing in `data`.
        steps: what was done to it.
    """

    data: bytes
    plain: bytes
    is_whole: bool
    steps: list[str]


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(rng: np.random.Generator) -> bytes:
    """Return a TIFF structure with an orientation, usually a valid one of the usual type."""
    order = '<' if rng.random() < 0.5 else '>'
    value = int(rng.integers(1, 9)) if rng.random() < 0.8 else int(rng.choice([0, 9, 99]))
    kind = 3 if rng.random() < 0.7 else int(rng.choice([1, 2, 4, 5, 7, 8, 9, 11]))  # SHORT; BYTE, ASCII, LONG, ...
    fields = {1: f'B{3}x', 2: 'B3x', 3: 'H2x', 4: 'I', 7: 'B3x', 8: 'h2x', 9: 'i', 11: 'f'}
    content = struct.pack(order + 'I', 8 + 2 + 24 + 4) if kind == 5 else struct.pack(order + fields[kind], value)
    entries = struct.pack(order + 'HHI4s', 0x0100, 4, 1, bytes(4)) + struct.pack(
        order + 'HHI4s', 0x0112, kind, 1, content
    )
    directory = struct.pack(order + 'H', 2) + entries
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'I', 8)
    empty = struct.pack(order + 'HI', 0, 0)
    if kind != 5 and rng.random() < 0.15:  # in the second directory, of the thumbnail, which does not count
        return head + struct.pack(order + 'HI', 0, 14) + directory + struct.pack(order + 'I', 0)
    return head + directory + struct.pack(order + 'I', 0) + struct.pack(order + 'II', value, 1) + empty


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack('>H', len(content) + 2) + content


def split_jpeg(data: bytes) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """Return the segments before the first scan, and (segments with SOS as the last, data) of each scan.

    For files of Pillow, which have neither fill bytes nor anything after the end.
    """
    header: list[bytes] = []
    scans: list[tuple[bytes, bytes]] = []
    pending, offset = b'', 2
    while data[offset : offset + 2] != EOI:
        end = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], 'big')
        pending, marker, offset = data[offset:end], data[offset + 1], end
        if marker != SOS:
            if scans:
                scans.append((pending, b''))
            else:
                header.append(pending)
            continue
        while data[end] != 0xFF or data[end + 1] in (0, *range(0xD0, 0xD8)):
            end += 1
        scans.append((pending, data[offset:end]))
        offset = end
    return header, scans


def three_scans(image: Image.Image) -> bytes:
    """Return a sequential JPEG with a scan for each color, which Pillow cannot write."""
    parts = [split_jpeg(encode(channel, 'JPEG', quality=90)) for channel in image.convert('YCbCr').split()]
    frame = segment(0xC0, struct.pack('>BHHB', 8, image.height, image.width, 3) + b'\1\x11\0\2\x11\0\3\x11\0')
    tables = [part for part in parts[0][0] if part[1] in (DHT, DQT)]
    scans = [segment(SOS, bytes((1, number + 1, 0, 0, 63, 0))) + part[1][0][1] for number, part in enumerate(parts)]
    jfif = segment(0xE0, b'JFIF\0\1\1\0\0\1\0\1\0\0')
    return b''.join((b'\xff\xd8', jfif, *tables, frame, *scans, EOI))


def plain_jpeg(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Return an ordinary JPEG of a random kind."""
    kind = rng.choice(['baseline', 'progressive', 'restart', 'gray', 'CMYK', 'three scans', '4:4:4', 'optimized'])
    options: dict = {
        'progressive': {'progressive': True},
        'restart': {'restart_marker_blocks': int(rng.integers(1, 9))},
        '4:4:4': {'subsampling': 0},
        'optimized': {'optimize': True},
    }.get(str(kind), {})
    if kind == 'three scans':
        return three_scans(image)
    mode = {'gray': 'L', 'CMYK': 'CMYK'}.get(str(kind), 'RGB')
    return encode(image.convert(mode), 'JPEG', quality=int(rng.integers(60, 96)), **options)


def _orienting(rng: np.random.Generator) -> list[bytes]:
    """Return APP1 segments: none, EXIF, XMP, or several of both, in any order."""
    found: list[bytes] = []
    for _ in range(int(rng.choice([0, 1, 1, 2, 3]))):
        if rng.random() < 0.7:
            block = exif(rng)
            cut = len(block) if rng.random() < 0.7 else int(rng.integers(1, len(block)))
            found += [segment(0xE1, b'Exif\0\0' + part) for part in (block[:cut], block[cut:]) if part]
        else:
            xmp = XMP.format(int(rng.integers(1, 9))).encode()
            found.append(segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0' + xmp))
    return found


def _unused(rng: np.random.Generator) -> bytes:
    """Return a segment, or a marker without content, that does not change the image."""
    thumbnail = encode(Image.new('RGB', (16, 8), 'red'), 'JPEG')
    size = int(rng.integers(0, 60))
    noise = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
    choices: list[Callable[[], bytes]] = [
        lambda: segment(COM, b'a comment ' + b'\xff\xd8\xff\xc0' * int(rng.integers(0, 3))),
        lambda: segment(0xE1, b'no EXIF' + noise),
        lambda: segment(0xE1, b''),
        lambda: segment(0xE0, b'JFXX\0\x10' + thumbnail),
        lambda: segment(0xE0, b'JFIF\0'[: int(rng.integers(0, 6))]),
        lambda: segment(0xE2, b'ICC_PROFILE\0' + bytes((int(rng.integers(3)), int(rng.integers(4)))) + noise),
        lambda: segment(0xE2, b'ICC_PROFILE\0'),
        lambda: segment(0xE2, b'MPF\0' + noise),
        lambda: segment(0xE2, b'FPXR\0' + thumbnail),
        lambda: segment(0xED, b'Photoshop 3.0\0' + b'8BIM\x03\xed\0\0\0\0\0\x10'[: int(rng.integers(0, 12))]),
        lambda: segment(0xED, b'Photoshop 3.0\0' + b'8BIM\x04\x04\0\0\0\0\x7f\xff' + noise),
        lambda: segment(0xEE, b'Adobe\0\x64\0\0\0\0'[: int(rng.integers(5, 12))]),
        lambda: segment(int(rng.integers(0xE3, 0xED)), noise + thumbnail),
        lambda: bytes((0xFF, int(rng.choice([0x01, *range(0xD0, 0xD8)])))),
    ]
    return choices[int(rng.integers(len(choices)))]()


def _split_tables(part: bytes) -> list[bytes]:
    """Return the tables of a DQT segment of 8-bit tables as a segment each."""
    content = part[4:]
    return [segment(DQT, content[start : start + 65]) for start in range(0, len(content), 65)]


def jpeg_case(image: Image.Image, rng: np.random.Generator) -> Case:
    """Return a JPEG with other segments in another order, sometimes without its end or some of its data."""
    plain = plain_jpeg(image, rng)
    header, scans = split_jpeg(plain)
    orienting = _orienting(rng)
    needed = [piece for part in header for piece in (_split_tables(part) if part[1] == DQT else [part])]
    steps = []
    if rng.random() < 0.7:
        needed = [needed[index] for index in rng.permutation(len(needed))]
        steps.append('shuffled')
    parts = list(needed)
    for extra in orienting:  # which stay in order
        last = max((position for position, part in enumerate(parts) if part in orienting), default=-1)
        parts.insert(int(rng.integers(last + 1, len(parts) + 1)), extra)
    for _ in range(int(rng.integers(0, 6))):
        parts.insert(int(rng.integers(len(parts) + 1)), _unused(rng))
    filled = [_fill(rng, steps) + part for part in parts]
    if rng.random() < 0.1:
        filled.insert(int(rng.integers(1, len(filled))), b'\0stray bytes\xff\0' * int(rng.integers(1, 20)))
        steps.append('stray bytes')
    tail = [_fill(rng, steps) + part + data for part, data in scans]
    if rng.random() < 0.15:
        height = next(part for part in header if part[1] in SOF)[5:7]
        tail.insert(1, segment(DNL, height))
        steps.append('number of lines')
    if rng.random() < 0.2:
        tail.insert(int(rng.integers(1, len(tail) + 1)), _unused_after_scan(rng))
        steps.append('metadata after a scan')
    body = b''.join((b'\xff\xd8', *filled, *tail))
    data, is_whole = _end_jpeg(body, len(tail[-1]) if tail[-1].endswith(scans[-1][1]) else 0, scans, rng, steps)
    return Case(data, b''.join((plain[:2], *orienting, plain[2:])), is_whole, steps)


def _fill(rng: np.random.Generator, steps: list[str]) -> bytes:
    if rng.random() < 0.8:
        return b''
    steps.append('fill bytes')
    return b'\xff' * int(rng.integers(1, 6))


def _unused_after_scan(rng: np.random.Generator) -> bytes:
    return segment(int(rng.choice([COM, 0xE1, 0xE5])), b'Exif\0\0' + exif(rng))


def _end_jpeg(
    body: bytes, last_bytes: int, scans: list[tuple[bytes, bytes]], rng: np.random.Generator, steps: list[str]
) -> tuple[bytes, bool]:
    """Return the file with an end, without, or without some data; and whether it is whole."""
    ending = rng.choice(['end', 'trailing', 'fill', 'none', 'half', 'cut', 'cut and end', 'scans'])
    steps.append(f'ending: {ending}')
    if ending == 'scans' and len(scans) > 1 and last_bytes:
        return body[:-last_bytes], False
    if ending.startswith('cut') and last_bytes and len(scans[-1][1]) > 4:
        cut = int(rng.integers(3, len(scans[-1][1])))
        return body[:-cut] + (EOI if ending == 'cut and end' else b''), False
    endings = {'trailing': EOI + b'\0more \xff\xd8\xff' + EOI, 'fill': b'\xff\xff' + EOI, 'none': b'', 'half': EOI[:1]}
    return body + endings.get(str(ending), EOI), True


def png_chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', checksum)


_COLOR_TYPES = {'L': 0, 'RGB': 2, 'P': 3, 'LA': 4, 'RGBA': 6}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def interlaced_rows(pixels: np.ndarray) -> bytes:
    """Return the rows of (height, width, channels) in Adam7's order, unfiltered."""
    rows = []
    for left, top, step_x, step_y in _ADAM7:
        part = pixels[top::step_y, left::step_x]
        rows += [b'\0' + row.tobytes() for row in part if row.size]
    return b''.join(rows)


def _unused_chunk(rng: np.random.Generator) -> bytes:
    wrong = None if rng.random() < 0.5 else int(rng.integers(2**32))
    kind, content = [
        (b'tEXt', b'Comment\0bought here'),
        (b'tEXt', b'interlace\0x'),  # Pillow stores texts beside its own fields
        (b'tEXt', b'transparency\0x'),
        (b'zTXt', b'Comment\0\0' + LARGE),
        (b'zTXt', b'Comment\0\1' + LARGE),
        (b'iTXt', b'Comment\0\1\0en\0\0' + LARGE),
        (b'iTXt', b'broken'),
        (b'iCCP', b'profile\0\0' + LARGE),
        (b'iCCP', b'profile\0\1' + LARGE),
        (b'iCCP', b''),
        (b'pHYs', b'\0\0'),
        (b'gAMA', b'\0'),
        (b'cHRM', b'\0' * 8),
        (b'sRGB', b''),
        (b'bKGD', b'\0'),
        (b'tIME', b'\0' * 7),
        (b'prVt', b'private'),
        (b'acTL', struct.pack('>II', 2, 0)[: int(rng.integers(0, 9))]),
        (b'fcTL', b'\0' * int(rng.integers(0, 30))),
        (b'eXIf', b'broken'),
    ][int(rng.integers(20))]
    return png_chunk(kind, content, wrong)


def _orienting_chunk(rng: np.random.Generator) -> bytes:
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0' + XMP.format(int(rng.integers(1, 9))).encode()
    block = exif(rng)
    profile = b'\nexif\n%8d\n' % (len(block) + 6) + (b'Exif\0\0' + block).hex().encode()
    texts = [
        png_chunk(b'eXIf', block),
        png_chunk(b'iTXt', xmp),
        png_chunk(b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(profile)),
        png_chunk(b'tEXt', b'Raw profile type exif\0' + profile),
    ]
    return texts[int(rng.integers(4))]


def png_case(image: Image.Image, rng: np.random.Generator) -> Case:
    """Return a PNG with its pixels in other chunks, among unused ones, sometimes without its end or some pixels."""
    mode = str(rng.choice(list(_COLOR_TYPES)))
    picture = image.convert(mode)
    if mode in ('LA', 'RGBA'):
        picture.putalpha(image.convert('L'))
    pixels = np.asarray(picture).reshape(image.height, image.width, -1)
    steps = [mode]
    is_interlaced = bool(rng.random() < 0.3)
    header = struct.pack('>IIBBBBB', *image.size, 8, _COLOR_TYPES[mode], 0, 0, is_interlaced)
    rows = interlaced_rows(pixels) if is_interlaced else b''.join(b'\0' + row.tobytes() for row in pixels)
    used = [png_chunk(b'PLTE', bytes(picture.getpalette() or ()))] if mode == 'P' else []
    if mode == 'P' and rng.random() < 0.5:
        used.append(png_chunk(b'tRNS', bytes(rng.integers(0, 256, 200, dtype=np.uint8))))
    deflated = zlib.compress(rows, int(rng.integers(0, 10)))
    start, end = b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', header), png_chunk(b'IEND', b'')
    orienting = [_orienting_chunk(rng)] if rng.random() < 0.6 else []
    plain = b''.join((start, *used, *orienting, png_chunk(b'IDAT', deflated), end))

    before, after = (orienting, []) if rng.random() < 0.7 else ([], orienting)
    short = [png_chunk(b'tRNS', b'\0')] if mode in ('L', 'RGB') and rng.random() < 0.3 else []
    before, after = before + used + short, list(after)
    for chunks, most in ((before, 4), (after, int(rng.choice([1, 3])))):
        for _ in range(int(rng.integers(0, most))):
            extra = _unused_chunk(rng)
            if extra[4:8] != b'eXIf' or not orienting:
                chunks.insert(int(rng.integers(len(chunks) + 1)), extra)
    cuts = sorted({0, len(deflated), *rng.integers(0, len(deflated), int(rng.integers(0, 6))).tolist()})
    pieces = [deflated[one:other] for one, other in itertools.pairwise(cuts)]
    if rng.random() < 0.2:
        pieces.insert(int(rng.integers(len(pieces) + 1)), b'')  # an empty chunk is allowed
    pixels_end = b''.join((start, *before, *(png_chunk(b'IDAT', piece) for piece in pieces)))
    data, is_whole = _end_png(pixels_end, b''.join((*after, end)), after, pieces, rng, steps)
    return Case(data, plain, is_whole, steps)


def _end_png(
    body: bytes, rest: bytes, after: list[bytes], pieces: list[bytes], rng: np.random.Generator, steps: list[str]
) -> tuple[bytes, bool]:
    ending = rng.choice(['end', 'trailing', 'no end', 'no checksum', 'no checksum of rows', 'cut'])
    if ending in ('no checksum', 'no checksum of rows', 'cut') and (after or len(pieces[-1]) < 5):
        ending = 'end'
    steps.append(f'ending: {ending}')
    if ending == 'cut':
        # More than the checksum of the rows and the end of their last block.
        return body[: -int(rng.integers(4 + 4 + 16, 4 + sum(map(len, pieces)) // 2 + 24))], False
    cuts = {'no checksum': 4, 'no checksum of rows': 8}
    if ending in cuts:
        return body[: -cuts[str(ending)]], True
    return body + (rest[:-12] if ending == 'no end' else rest + b'trailing' * (ending == 'trailing')), True
