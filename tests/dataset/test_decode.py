"""The decoder: formats, modes, orientation, and damage of every kind, compared with Pillow and values by hand."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from lib.dataset.decode import DecodeError, decode
from lib.dataset.image_file import CHANNELS
from lib.dataset.images import FileImages
from lib.dataset.lazy_image import open_lazy_image


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width=40, height=30):
    """Return a smooth image, which JPEG hardly changes, without symmetry, so that its orientation is visible."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def png(width, height, bit_depth, color_type, rows, chunks=(), interlaced=False):
    """Return a PNG of raw scanlines `rows`, with `chunks` (type, data) before the pixels."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, bit_depth, color_type, 0, 0, interlaced)
    body = zlib.compress(b''.join(b'\0' + row for row in rows))
    middle = b''.join(chunk(kind, data) for kind, data in chunks)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + middle + chunk(b'IDAT', body) + chunk(b'IEND', b'')


def assert_rgb(image, size):
    assert isinstance(image, Image.Image)
    assert image.mode == 'RGB'
    assert image.size == size


def largest_difference(image, expected):
    return np.abs(np.asarray(image).astype(int) - np.asarray(expected)).max()


@pytest.mark.parametrize(
    ('kind', 'options', 'tolerance'),
    [
        ('PNG', {}, 0),
        ('BMP', {}, 0),
        ('TIFF', {}, 0),
        ('TIFF', {'compression': 'tiff_lzw'}, 0),
        ('TIFF', {'compression': 'tiff_deflate'}, 0),
        ('WEBP', {'lossless': True}, 0),
        ('WEBP', {'quality': 95}, 12),
        ('JPEG', {'quality': 95, 'subsampling': 0}, 6),
        ('JPEG', {'quality': 95, 'subsampling': 0, 'progressive': True}, 6),
        ('GIF', {}, 40),
        pytest.param('JPEG2000', {}, 0, marks=pytest.mark.process),
        pytest.param('AVIF', {'quality': 95, 'subsampling': '4:4:4'}, 8, marks=pytest.mark.process),
    ],
    ids=str,
)
def test_formats(kind, options, tolerance):
    image = decode(encode(gradient(), kind, **options))
    assert_rgb(image, (40, 30))
    assert largest_difference(image, gradient()) <= tolerance


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'TIFF', 'PNG', 'MPO'])
def test_the_first_image_of_animations_and_stereo_images_is_decoded(kind):
    red, blue = Image.new('RGB', (8, 6), (255, 0, 0)), Image.new('RGB', (8, 6), (0, 0, 255))
    data = encode(red, kind, save_all=True, append_images=[blue])
    image = decode(data)
    assert_rgb(image, (8, 6))
    assert largest_difference(image, red) <= 3


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'BMP', 'GIF', 'JPEG'])
def test_grayscale(kind):
    gray = gradient().convert('L')
    image = decode(encode(gray, kind, **({'quality': 100} if kind == 'JPEG' else {})))
    assert_rgb(image, (40, 30))
    assert largest_difference(image, Image.merge('RGB', [gray] * 3)) <= (2 if kind == 'JPEG' else 0)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'BMP'])
def test_one_bit(kind):
    pixels = np.array([[0, 255, 255], [255, 0, 0]], dtype=np.uint8)
    image = decode(encode(Image.fromarray(pixels).convert('1'), kind))
    assert np.array_equal(np.asarray(image), np.repeat(pixels[:, :, None], 3, axis=2))


def over_white(color, alpha):
    return [round(value * alpha / 255 + 255 * (1 - alpha / 255)) for value in color]


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('alpha', [0, 1, 128, 254, 255])
def test_alpha_is_composed_with_white(kind, alpha):
    options = {'lossless': True, 'exact': True} if kind == 'WEBP' else {}
    image = decode(encode(Image.new('RGBA', (3, 2), (200, 30, 90, alpha)), kind, **options))
    assert_rgb(image, (3, 2))
    assert largest_difference(image, np.full((2, 3, 3), over_white((200, 30, 90), alpha))) <= 1


@pytest.mark.parametrize('alpha', [0, 128, 255])
def test_gray_alpha_is_composed_with_white(alpha):
    image = decode(encode(Image.new('LA', (3, 2), (40, alpha)), 'PNG'))
    assert largest_difference(image, np.full((2, 3, 3), over_white((40,), alpha)[0])) <= 1


@pytest.mark.parametrize('kind', ['PNG', 'GIF'])
def test_palette(kind):
    palette = Image.new('P', (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    plain = decode(encode(palette, kind))
    assert np.asarray(plain).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    transparent = decode(encode(palette, kind, transparency=1))
    assert np.asarray(transparent).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_palette_with_alpha_per_entry():
    data = png(2, 1, 8, 3, [b'\0\1'], [(b'PLTE', bytes([10, 20, 30, 200, 100, 50])), (b'tRNS', b'\xff\x80')])
    image = np.asarray(decode(data)).tolist()
    assert image[0][0] == [10, 20, 30]
    assert image[0][1] == pytest.approx(over_white((200, 100, 50), 128), abs=1)


def test_a_transparent_color_is_white():
    color = png(2, 1, 8, 2, [bytes([9, 8, 7, 1, 2, 3])], [(b'tRNS', struct.pack('>HHH', 1, 2, 3))])
    assert np.asarray(decode(color)).tolist() == [[[9, 8, 7], [255, 255, 255]]]
    gray = png(2, 1, 8, 0, [bytes([9, 8])], [(b'tRNS', struct.pack('>H', 8))])
    assert np.asarray(decode(gray)).tolist() == [[[9] * 3, [255] * 3]]


SAMPLES_16 = [0, 255, 256, 32768, 65280, 65535]
BYTES_OF_16 = [0, 0, 1, 128, 255, 255]


def test_16_bit_gray_png_is_scaled():
    image = decode(png(6, 1, 16, 0, [struct.pack('>6H', *SAMPLES_16)]))
    assert np.asarray(image).tolist() == [[[value] * 3 for value in BYTES_OF_16]]


def test_16_bit_color_png_is_scaled():
    image = decode(png(2, 1, 16, 2, [struct.pack('>6H', *SAMPLES_16)]))
    assert np.asarray(image).tolist() == [[BYTES_OF_16[:3], BYTES_OF_16[3:]]]


def test_16_bit_png_with_alpha_is_scaled():
    image = decode(png(1, 1, 16, 6, [struct.pack('>4H', 65535, 32768, 0, 65535)]))
    assert np.asarray(image).tolist() == [[[255, 128, 0]]]
    image = decode(png(2, 1, 16, 4, [struct.pack('>4H', 32768, 65535, 32768, 0)]))
    assert np.asarray(image).tolist() == [[[128] * 3, [255] * 3]]


def test_16_bit_color_png_with_a_transparent_color():
    rows, transparent = [struct.pack('>6H', *SAMPLES_16)], struct.pack('>HHH', 7, 8, 9)
    image = decode(png(2, 1, 16, 2, rows, [(b'tRNS', transparent)]))
    assert np.asarray(image).tolist() == [[BYTES_OF_16[:3], BYTES_OF_16[3:]]]


@pytest.mark.parametrize('byte_order', ['<', '>'])
def test_16_bit_tiff_is_scaled(byte_order):
    samples = np.array([SAMPLES_16], dtype=np.dtype(byte_order + 'u2'))
    image = decode(encode(Image.fromarray(samples), 'TIFF'))
    assert np.asarray(image).tolist() == [[[value] * 3 for value in BYTES_OF_16]]


@pytest.mark.parametrize(
    ('samples', 'expected'),
    [
        (np.array([[0, 257 * 7, 65535, -5]], np.int32), [0, 7, 255, 0]),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0, np.nan]], np.float32), [0, 128, 255, 0]),
        (np.array([[0.0, 100.0, 255.0, -np.inf]], np.float32), [0, 100, 255, 0]),
        (np.array([[0.0, 257.0 * 9, 65535.0]], np.float32), [0, 9, 255]),
        (np.array([[0.0, 5e5, 1e6]], np.float32), [0, 128, 255]),
        (np.array([[0.0, np.inf]], np.float32), [0, 255]),
        (np.array([[np.nan, -1.0]], np.float32), [0, 0]),
    ],
    ids=str,
)
def test_32_bit_tiff_is_scaled(samples, expected):
    image = decode(encode(Image.fromarray(samples), 'TIFF'))
    assert np.asarray(image).tolist() == [[[value] * 3 for value in expected]]


@pytest.mark.parametrize(('kind', 'options'), [('JPEG', {'quality': 100, 'subsampling': 0}), ('TIFF', {})])
@pytest.mark.parametrize(
    ('ink', 'color'),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 255, 0), (255, 0, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_cmyk(kind, options, ink, color):
    # Pillow writes JPEG inverted with Adobe's marker, as Adobe does, and TIFF not inverted: the ink is the same.
    data = encode(Image.new('CMYK', (8, 8), ink), kind, **options)
    assert (b'Adobe' in data) == (kind == 'JPEG')
    image = decode(data)
    assert_rgb(image, (8, 8))
    assert largest_difference(image, np.full((8, 8, 3), color)) <= 3


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {'WEBP': {'lossless': True}, 'JPEG': {'quality': 95}}.get(kind, {})
    data = encode(gradient(), kind, exif=exif, **options)
    stored = Image.open(io.BytesIO(data))
    stored.load()
    expected = ImageOps.exif_transpose(stored).convert('RGB')
    image = decode(data)
    assert image.size == ((40, 30) if orientation < 5 else (30, 40))
    assert np.array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize(
    'exif',
    [
        b'Exif\0\0',
        b'Exif\0\0garbage without a TIFF header',
        b'Exif\0\0MM\0*\xff\xff\xff\xff',
        b'Exif\0\0II*\0\x08\0\0\0\xff\xff' + b'\x12\x01\x03\0' + b'\xff' * 6,
        b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01A\0\0\0\0\0\0\0',  # orientation is text
        b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0',  # orientation is 99
    ],
    ids=str,
)
def test_broken_exif_is_ignored(exif):
    image = decode(encode(gradient(), 'JPEG', exif=exif, quality=95))
    assert_rgb(image, (40, 30))
    assert largest_difference(image, gradient()) <= 20


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'BMP', 'TIFF', 'GIF', 'WEBP'])
def test_one_pixel(kind):
    assert_rgb(decode(encode(Image.new('RGB', (1, 1)), kind)), (1, 1))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('fraction', [0.01, 0.1, 0.5, 0.9])
def test_truncated_files_are_rejected(kind, fraction):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind)
    with pytest.raises(DecodeError) as caught:
        decode(data[: int(len(data) * fraction)])
    assert str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'BMP', 'TIFF', 'GIF', 'WEBP'])
def test_damaged_files_are_decoded_or_rejected(kind):
    data = bytearray(encode(gradient(), kind))
    rng = np.random.default_rng(0)
    for trial in range(150):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), size=rng.integers(1, 12)):
            damaged[position] = rng.integers(256)
        try:
            image = decode(bytes(damaged), max_pixels=10**6)
        except DecodeError:
            continue  # any other exception would fail the test
        assert image.mode == 'RGB', f'seed 0, trial {trial}'


EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n'
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'


@pytest.mark.parametrize(
    'data',
    [b'', b'\0', b'\xff\xd8', b'\xff\xd8\xff', b'GIF89a', b'just text, no image', EPS, SVG, b'\0' * 10_000],
    ids=lambda data: repr(data[:12]),
)
def test_files_that_are_not_images(data, tmp_path):
    (tmp_path / 'photo.jpg').write_bytes(data)
    with pytest.raises(DecodeError) as caught:
        FileImages(['photo.jpg'], str(tmp_path)).load(0)
    assert '\n' not in str(caught.value)
    assert '0x' not in str(caught.value)  # not the address of an object


@pytest.mark.parametrize('kind', ['PPM', 'TGA', 'PCX', 'ICO', 'PDF', 'DDS', 'SGI'])
def test_formats_that_are_not_allowed(kind):
    with pytest.raises(DecodeError, match='known format'):
        decode(encode(Image.new('RGB', (16, 16)), kind))


def test_a_decompression_bomb_is_rejected_by_its_header():
    with pytest.raises(DecodeError):
        decode(png(60_000, 60_000, 8, 2, [b'\0' * 180_000]))
    # This size is below Pillow's own limit.
    with pytest.raises(DecodeError, match='13300 x 13400 pixels; at most 178,000,000 are allowed'):
        decode(png(13_300, 13_400, 1, 0, [b'\0']))


def test_the_pixel_limit_is_exact_and_needs_no_pixels(monkeypatch):
    data = encode(gradient(), 'PNG')
    assert_rgb(decode(data, max_pixels=1200), (40, 30))
    monkeypatch.setattr('PIL.ImageFile.ImageFile.load', lambda self: pytest.fail('pixels were decoded'))
    with pytest.raises(DecodeError, match='40 x 30'):
        decode(data, max_pixels=1199)


def test_a_wrong_header_is_rejected():
    rows = [bytes(range(30))] * 10
    assert_rgb(decode(png(10, 10, 8, 2, rows)), (10, 10))
    for height in (11, 1000):
        with pytest.raises(DecodeError, match='rows are missing'):
            decode(png(10, height, 8, 2, rows))
    data = bytearray(encode(gradient(), 'BMP'))
    data[22:26] = struct.pack('<i', 300)
    with pytest.raises(DecodeError):
        decode(bytes(data))
    with pytest.raises(DecodeError):
        decode(png(0, 10, 8, 2, rows))


def with_height(data, height):
    """Return the JPEG with another number of rows in its header."""
    start = next(position for position in map(data.find, (b'\xff\xc0', b'\xff\xc2')) if position > 0)
    return data[: start + 5] + height.to_bytes(2, 'big') + data[start + 7 :]


@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'restart_marker_rows': 1}], ids=str)
def test_a_jpeg_with_a_wrong_header_is_rejected(options):
    data = encode(gradient(300, 200), 'JPEG', **options)
    assert_rgb(decode(data), (300, 200))
    assert_rgb(decode(with_height(data, 200)), (300, 200))
    for height in (300, 1000, 100):
        with pytest.raises(DecodeError):
            decode(with_height(data, height))
        with pytest.raises(DecodeError):
            open_lazy_image(with_height(data, height)).pixels(1.0)


@pytest.mark.parametrize(('bit_depth', 'color_type'), [(1, 0), (4, 0), (16, 0), (8, 2), (8, 3), (8, 4), (16, 6)])
@pytest.mark.parametrize('width', [1, 7, 64])
def test_a_black_png_is_complete(bit_depth, color_type, width):
    # Pillow decodes a missing row as a black one.
    row = b'\0' * -(-width * bit_depth * CHANNELS[color_type] // 8)
    palette = [(b'PLTE', b'\0\0\0')] if color_type == 3 else []
    assert_rgb(decode(png(width, 5, bit_depth, color_type, [row] * 5, palette)), (width, 5))
    with pytest.raises(DecodeError, match='rows are missing'):
        decode(png(width, 5, bit_depth, color_type, [row] * 4, palette))


@pytest.mark.parametrize('width', range(1, 10))
@pytest.mark.parametrize('height', range(1, 10))
def test_an_interlaced_png_is_complete(width, height):
    # The definition of Adam7: the pass of each pixel in a tile of 8 x 8.
    tile = ['16462646', '77777777', '56565656', '77777777', '36463646', '77777777', '56565656', '77777777']
    rows = []
    for step in '1234567':
        lengths = [sum(tile[y % 8][x % 8] == step for x in range(width)) for y in range(height)]
        rows += [b'\x09' * 3 * length for length in lengths if length]
    whole = png(width, height, 8, 2, rows, interlaced=True)
    assert np.array_equal(np.asarray(decode(whole)), np.full((height, width, 3), 9))
    with pytest.raises(DecodeError, match=r'rows are missing|truncated'):
        decode(png(width, height, 8, 2, rows[:-1], interlaced=True))


def test_a_large_black_png_is_inflated_in_pieces():
    row = b'\0' * 3000
    assert_rgb(decode(png(1000, 1200, 8, 2, [row] * 1200)), (1000, 1200))
    with pytest.raises(DecodeError, match='rows are missing'):
        decode(png(1000, 1200, 8, 2, [row] * 1199))


@pytest.mark.process
def test_no_warnings_are_shown_and_no_global_state_changes():
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        filters = list(warnings.filters)
        with pytest.raises(DecodeError):
            decode(png(12_000, 9_000, 1, 0, [b'\0']))  # between the sizes that Pillow warns about and rejects
        decode(encode(gradient(), 'JPEG', exif=b'Exif\0\0MM\0*\xff\xff\xff\xff'))
        assert warnings.filters == filters
    assert limit == Image.MAX_IMAGE_PIXELS


def test_memory_errors_are_not_decode_errors(monkeypatch):
    def fail(self):
        raise MemoryError

    monkeypatch.setattr('PIL.PngImagePlugin.PngImageFile.load', fail)
    with pytest.raises(MemoryError):
        decode(encode(gradient(), 'PNG'))
