"""Lazy images: the size in the header, the smallest sufficient scale, the pixels of a full decode."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

from lib.dataset import lazy_image
from lib.dataset.crop_resize import crop_resize
from lib.dataset.decode import DecodeError, decode
from lib.dataset.lazy_image import LazyJpegImage, open_lazy_image
from lib.dataset.transforms import CropParams, RandomResizedCrop, ResizeCenterCrop
from tests.dataset.cropping import crop


def smooth(width, height, period=17):
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / period + y / (period + 12) + phase) for phase in (0, 1, 2)]
    return Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))


def encode(image, kind='JPEG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize('orientation', range(10))
@pytest.mark.parametrize('scale', [1.0, 0.3])
def test_orientation_is_read_from_the_header_and_undone(orientation, scale):
    data = encode(smooth(160, 96), quality=95, exif=exif_of(orientation))
    image, whole = open_lazy_image(data), decode(data)
    assert (image.width, image.height) == whole.size
    pixels, reduction = image.pixels(scale)
    assert reduction == (1 if scale == 1 else 2)
    expected = np.asarray(whole.reduce(reduction), int)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 2


def test_a_jpeg_without_metadata_is_opened_without_pillow(monkeypatch):
    monkeypatch.setattr(lazy_image, 'orientation_in', lambda metadata: pytest.fail('Pillow was called'))
    assert open_lazy_image(encode(smooth(64, 48))).width == 64


@pytest.mark.parametrize(
    'options', [{}, {'progressive': True}, {'subsampling': 0}, {'restart_marker_rows': 1}], ids=str
)
@pytest.mark.parametrize('size', [(1, 1), (7, 5), (17, 33), (160, 121), (400, 300)], ids=str)
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_a_whole_jpeg_equals_pillows(mode, size, options):
    if mode == 'L':
        options = {name: value for name, value in options.items() if name != 'subsampling'}
    data = encode(smooth(*size).convert(mode), **options)
    image = open_lazy_image(data)
    assert isinstance(image, LazyJpegImage)
    pixels, reduction = image.pixels(1.0)
    assert reduction == 1
    assert np.abs(pixels.astype(int) - np.asarray(decode(data))).max() <= 1


@pytest.mark.parametrize('size', [(1, 1), (15, 400), (31, 33), (160, 121), (801, 799), (1025, 640)], ids=str)
@pytest.mark.parametrize('scale', [1.0, 0.51, 0.5, 0.49, 0.26, 0.25, 0.13, 0.125, 0.01])
def test_the_scale_is_the_smallest_sufficient_one(size, scale):
    pixels, reduction = open_lazy_image(encode(smooth(*size))).pixels(scale)
    assert reduction in (1, 2, 4, 8)
    assert 1 / reduction >= scale
    assert pixels.shape == (-(-size[1] // reduction), -(-size[0] // reduction), 3)
    if min(size) >= 256:
        assert reduction == 8 or 1 / (2 * reduction) < scale


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'BMP', 'TIFF', 'GIF'])
def test_other_formats_are_decoded_whole(kind):
    data = encode(smooth(50, 40), kind, **({'lossless': True} if kind == 'WEBP' else {}))
    image = open_lazy_image(data)
    assert (image.width, image.height) == (50, 40)
    pixels, reduction = image.pixels(0.1)
    assert reduction == 1
    assert np.array_equal(pixels, np.asarray(decode(data)))


def test_cmyk_jpegs_are_decoded_by_pillow():
    data = encode(Image.new('CMYK', (40, 30), (0, 200, 100, 0)), quality=95)
    assert np.array_equal(open_lazy_image(data).pixels(1.0)[0], np.asarray(decode(data)))


@pytest.mark.process
def test_heic_is_decoded_if_its_package_is_installed():
    pillow_heif = pytest.importorskip('pillow_heif')
    buffer = io.BytesIO()
    pillow_heif.from_pillow(smooth(64, 48)).save(buffer, quality=95)
    image = open_lazy_image(buffer.getvalue())
    assert (image.width, image.height) == (64, 48)
    assert np.abs(image.pixels(1.0)[0].astype(int) - np.asarray(smooth(64, 48))).mean() < 8


def test_heic_without_its_package_names_the_package(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'pillow_heif', None)
    with pytest.raises(DecodeError, match='pip install pillow-heif'):
        open_lazy_image(b'\0\0\0\x18ftypheic' + b'\0' * 100)


@pytest.mark.parametrize('fraction', [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_jpeg_raises_when_it_is_decoded(fraction):
    data = encode(smooth(300, 200))
    image = open_lazy_image(data[: int(len(data) * fraction)])
    for scale in (1.0, 0.2):
        with pytest.raises(DecodeError):
            image.pixels(scale)


def test_harmless_extra_bytes_are_accepted():
    data = encode(smooth(64, 48))
    end = data.rindex(b'\xff\xd9')
    odd = data[:end] + b'\x00\x00\x00' + data[end:] + b'trailing bytes'
    assert np.array_equal(open_lazy_image(odd).pixels(1.0)[0], np.asarray(decode(odd)))


def test_a_decompression_bomb_is_rejected_by_its_header():
    data = encode(smooth(40, 30))
    with pytest.raises(DecodeError, match='40 x 30 pixels; at most 1,199'):
        open_lazy_image(data, max_pixels=1199)


@pytest.mark.parametrize('transform', [ResizeCenterCrop(32), RandomResizedCrop(32, (0.5, 1.0))], ids=repr)
@pytest.mark.parametrize('size', [(300, 200), (257, 801), (64, 64)], ids=str)
def test_a_reduced_decode_is_close_to_a_full_one(transform, size):
    # Slow waves, since an edge of a crop may move by half a reduced pixel.
    data = encode(smooth(*size, period=200), quality=95)
    for seed in range(10):
        draws = np.random.default_rng(seed).random(transform.num_draws).tolist()
        print('seed', seed)
        reduced, whole = crop(transform, open_lazy_image(data), draws), crop(transform, decode(data), draws)
        assert np.abs(reduced.astype(int) - whole).mean() <= 3


def test_pixels_beyond_the_canvas_are_cut_off_and_the_rest_is_zeros():
    canvas = np.full((8, 8, 3), 7, np.uint8)
    crop_resize(
        open_lazy_image(encode(Image.new('RGB', (4, 4), 'white'), 'PNG')), CropParams((0, 0, 4, 4), 4, 4, -2, 6), canvas
    )
    expected = np.zeros((8, 8, 3))
    expected[6:, :2] = 255
    assert np.array_equal(canvas, expected)


@pytest.mark.skipif('REAL_PHOTOS' not in os.environ, reason='REAL_PHOTOS is not set')
@pytest.mark.long
@pytest.mark.parametrize(
    ('enlarged', 'every'),
    [
        pytest.param(1, 20, id='348 px, some'),
        pytest.param(1, 1, id='348 px', marks=pytest.mark.slow),
        pytest.param(800 / 348, 20, id='800 px', marks=pytest.mark.slow),
    ],
)
def test_real_photos_are_within_three_levels_of_a_full_decode(enlarged, every):
    """The oracle is Pillow's full decode with torchvision's antialiased resize."""
    photos = sorted(Path(os.environ['REAL_PHOTOS']).rglob('*.jpg'))[::every]
    random_crop, center_crop = RandomResizedCrop(112, flip_probability=0.0), ResizeCenterCrop(112)
    sums = np.zeros(2)
    for number, path in enumerate(photos):
        data = path.read_bytes()
        if enlarged > 1:
            photo = Image.open(path).convert('RGB')
            data = encode(photo.resize((round(photo.width * enlarged), round(photo.height * enlarged))), quality=90)
        whole, image = decode(data), open_lazy_image(data)
        draws = np.random.default_rng(number).random(random_crop.num_draws).tolist()
        left, top, right, bottom = random_crop.box(*whole.size, draws[1:])
        expected = (
            functional.resized_crop(whole, top, left, bottom - top, right - left, [112, 112]),
            functional.center_crop(functional.resize(whole, 128, InterpolationMode.BILINEAR), 112),
        )
        results = (crop(random_crop, image, draws), crop(center_crop, image))
        sums += [
            np.abs(one.astype(int) - np.asarray(other)).mean() for one, other in zip(results, expected, strict=True)
        ]
    means = sums / len(photos)
    print(f'mean absolute difference over {len(photos)} photos: crop {means[0]:.2f}, center {means[1]:.2f}')
    assert means.max() <= 3
