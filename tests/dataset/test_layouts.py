"""Header view, decoder, data audit and packing agree with Pillow on files in unusual layouts."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from lib.audit.image_stats import image_stats
from lib.dataset.decode import DecodeError, decode
from lib.dataset.lazy_image import open_lazy_image
from lib.shards.encode import Copy
from tests.dataset.layouts import Case, jpeg_case, png_case


def smooth_image(rng, width, height):
    """Return a small colored image, of waves and noise."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(x / 9 + y / 13 + phase) for phase in rng.random(3) * 6]
    noise = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray((np.stack(waves, axis=2) + noise).clip(0, 255).astype(np.uint8))


def as_pillow_sees(data):
    """Return the upright pixels and the orientation according to Pillow."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        image = Image.open(io.BytesIO(data))
        image.load()
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:  # broken EXIF
            upright = image
        if upright.has_transparency_data:
            upright = upright.convert('RGBA')
            upright = Image.alpha_composite(Image.new('RGBA', upright.size, 'white'), upright)
        return np.asarray(upright.convert('RGB'))


def assert_agreement(case: Case):
    if not case.is_whole:
        for read in (decode, lambda data: open_lazy_image(data).pixels(1.0), image_stats):
            with pytest.raises(DecodeError):
                read(case.data)
        return
    expected = as_pillow_sees(case.plain)
    height, width = expected.shape[:2]
    assert np.array_equal(np.asarray(decode(case.data)), expected)
    image = open_lazy_image(case.data)
    assert (image.width, image.height) == (width, height)
    pixels, reduction = image.pixels(1.0)
    assert reduction == 1
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    reduced, reduction = image.pixels(0.3)
    assert reduced.shape == (-(-height // reduction), -(-width // reduction), 3)
    stats = image_stats(case.data)
    assert (stats.width, stats.height) == (width, height)
    gray = Image.fromarray(expected).convert('L').resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2.0)
    assert np.abs(stats.thumbnail.astype(int) - np.asarray(gray)).max() <= 2
    packed = Copy()(case.data)
    assert (packed.data, packed.fault) == (case.data, '')
    assert sorted((packed.width, packed.height)) == sorted((width, height))
    try:
        direct = as_pillow_sees(case.data)
    except Exception:
        return  # Pillow rejects it for its metadata
    assert np.array_equal(direct, expected)


def check_many(make, images, seed):
    for number, image in enumerate(images):
        rng = np.random.default_rng([seed, number])
        case = make(image, rng)
        try:
            assert_agreement(case)
        except (Exception, pytest.fail.Exception) as error:
            raise AssertionError(
                f'seed {seed}, case {number}, {len(case.data)} bytes, {case.steps}: {error}'
            ) from error


@pytest.mark.long
@pytest.mark.parametrize(('make', 'count'), [(jpeg_case, 50), (png_case, 30)], ids=['JPEG', 'PNG'])
def test_files_in_unusual_layouts(make, count):
    rng = np.random.default_rng(7)
    check_many(make, (smooth_image(rng, 40 + number % 17, 33) for number in range(count)), seed=0)


@pytest.mark.slow
@pytest.mark.skipif('REAL_PHOTOS' not in os.environ, reason='REAL_PHOTOS names no folder with real photos')
@pytest.mark.parametrize(('make', 'count'), [(jpeg_case, 2000), (png_case, 500)], ids=['JPEG', 'PNG'])
def test_real_photos_in_unusual_layouts(make, count):
    paths = sorted(Path(os.environ['REAL_PHOTOS']).rglob('*.jpg'))
    photos = (Image.open(paths[number * 7 % len(paths)]).convert('RGB') for number in range(count))
    if make is png_case:
        photos = (photo.reduce(3) for photo in photos)
    check_many(make, photos, seed=int(os.environ.get('SEED', '1')))
