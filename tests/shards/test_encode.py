"""The encodings of packed images: reencode, raw and copy."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from lib.dataset.decode import decode
from lib.shards.encode import UNKNOWN, Copy, Raw, Reencode
from tests.shards.packing import encoded, smooth

GPS, ORIENTATION = 0x8825, 0x0112
BROKEN = {'nothing': b'', 'a page': b'<html>404</html>', 'truncated': encoded(smooth(90, 80))[:700]}


def photo_with_position(orientation: int) -> bytes:
    """Return a JPEG with the metadata of a phone: GPS position, orientation, comment, color profile."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = 'Maker of phones'
    exif.get_ifd(GPS).update({1: 'N', 2: (52.0, 31.0, 12.25), 3: 'E', 4: (13.0, 24.0, 18.0)})
    return encoded(smooth(90, 60), exif=exif, comment=b'at home', icc_profile=b'profile' * 9, quality=95)


@pytest.mark.parametrize('size', [(1, 65_501), (65_501, 3)], ids=str)
def test_an_image_too_long_for_a_jpeg_is_unusable(size):
    packed = Reencode(32)(encoded(Image.new('L', size), 'PNG'))
    assert (packed.data, packed.width) == (b'', 0)
    assert packed.fault == f'{size[0]} x {size[1]} pixels when packed; a JPEG has at most 65,500 a side'


@pytest.mark.parametrize(
    ('size', 'expected'),
    [
        ((90, 60), (48, 32)),
        ((60, 90), (32, 48)),
        ((300, 40), (240, 32)),
        ((41, 1000), (32, 780)),
        ((32, 32), (32, 32)),
        ((31, 400), (31, 400)),  # never enlarged
        ((1, 1), (1, 1)),
        ((64, 6400), (32, 3200)),
    ],
)
def test_the_short_side_is_reduced(size, expected):
    packed = Reencode(32)(encoded(smooth(*size)))
    assert Image.open(io.BytesIO(packed.data)).size == (packed.width, packed.height) == expected


@pytest.mark.parametrize('orientation', range(1, 9))
def test_no_metadata_is_packed_and_the_image_is_upright(orientation):
    data = photo_with_position(orientation)
    before = Image.open(io.BytesIO(data))
    assert dict(before.getexif().get_ifd(GPS))[2] == (52.0, 31.0, 12.25)
    for short_side in (32, 1000):  # reduced, and already small enough
        packed = Reencode(short_side)(data)
        after = Image.open(io.BytesIO(packed.data))
        assert not dict(after.getexif())
        assert after.info.keys() <= {'jfif', 'jfif_version', 'jfif_unit', 'jfif_density'}
        assert not [word for word in (b'Exif', b'Maker', b'at home', b'profile', b'ICC_PROFILE') if word in packed.data]
        upright = ImageOps.exif_transpose(before).resize(after.size, Image.Resampling.LANCZOS)
        difference = np.abs(np.asarray(after.convert('RGB')).astype(int) - np.asarray(upright))
        assert difference.mean() < 2


@pytest.mark.parametrize('size', [(400, 300), (161, 500), (1600, 1200)])
def test_reduced_images_are_close_to_an_exact_area_average(size):
    """Compare with the mean over the square of each target pixel, summed over a grid eight times as fine."""
    image = smooth(*size)
    packed = Reencode(80, quality=95)(encoded(image, 'PNG'))
    width, height = packed.width, packed.height
    fine = np.asarray(image.resize((8 * width, 8 * height), Image.Resampling.NEAREST)).astype(float)
    mean = fine.reshape(height, 8, width, 8, 3).mean((1, 3))
    result = np.asarray(decode(packed.data)).astype(float)
    assert np.abs(result - mean)[2:-2, 2:-2].mean() < 2


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'JPEG'])
def test_every_format_becomes_a_jpeg(kind):
    packed = Reencode(20)(encoded(smooth(40, 30), kind))
    assert (packed.extension, Image.open(io.BytesIO(packed.data)).format) == ('jpg', 'JPEG')


def test_transparency_becomes_white_and_cmyk_is_decoded():
    clear = Image.new('RGBA', (40, 40), (200, 0, 0, 0))
    assert np.asarray(decode(Reencode(20)(encoded(clear, 'PNG')).data)).min() >= 254
    cmyk = encoded(smooth(40, 30).convert('CMYK'))
    assert np.abs(np.asarray(decode(Reencode(30)(cmyk).data)).astype(int) - np.asarray(decode(cmyk))).mean() < 3


@pytest.mark.parametrize('orientation', [1, 6])
@pytest.mark.parametrize('size', [(90, 60), (31, 400), (1, 1), (3, 70_000)], ids=str)
def test_raw_images_are_the_pixels_of_the_reduced_image_in_a_tiff(size, orientation):
    """Pillow's decoder is the oracle; without reduction, the pixels are those of the photo."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(smooth(*size), 'PNG', exif=exif)
    packed, whole = Raw(32)(data), decode(data)
    scale = min(1.0, 32 / min(whole.size))
    expected = tuple(round(side * scale) for side in whole.size)
    assert (packed.width, packed.height, packed.extension, packed.fault) == (*expected, 'tif', '')
    pixels = whole.resize(expected, Image.Resampling.LANCZOS, reducing_gap=3.0)
    assert packed.data[-3 * packed.width * packed.height :] == pixels.tobytes()
    read = Image.open(io.BytesIO(packed.data))
    assert (read.format, read.mode, read.tobytes()) == ('TIFF', 'RGB', pixels.tobytes())
    assert np.array_equal(np.asarray(decode(packed.data)), np.asarray(pixels))


def test_raw_images_have_no_metadata():
    packed = Raw(32)(photo_with_position(6))
    assert (packed.width, packed.height) == (32, 48)
    assert not [word for word in (b'Exif', b'Maker', b'at home', b'profile') if word in packed.data]
    assert not dict(Image.open(io.BytesIO(packed.data)).getexif().get_ifd(GPS))


@pytest.mark.parametrize('encode', [Reencode(20), Raw(20)], ids=['reencode', 'raw'])
@pytest.mark.parametrize('data', BROKEN.values(), ids=BROKEN)
def test_undecodable_images_have_a_fault_and_no_bytes(data, encode):
    packed = encode(data)
    assert packed.data == b''
    assert packed.fault


@pytest.mark.parametrize(
    ('kind', 'extension'),
    [('JPEG', 'jpg'), ('PNG', 'png'), ('WEBP', 'webp'), ('BMP', 'bmp'), ('GIF', 'gif'), ('TIFF', 'tif')],
)
def test_copied_bytes_are_unchanged_and_their_content_sets_the_extension(kind, extension):
    data = encoded(smooth(40, 30), kind)
    packed = Copy()(data)
    assert packed.data == data
    assert (packed.extension, packed.width, packed.height, packed.fault) == (extension, 40, 30, '')


@pytest.mark.parametrize('name', ['nothing', 'a page'])
def test_copied_bytes_that_are_not_an_image_are_unchanged(name):
    packed = Copy()(BROKEN[name])
    assert (packed.data, packed.extension) == (BROKEN[name], UNKNOWN)
    assert packed.fault
