"""Transforms: torchvision's crops for the same box, their distributions, purity."""

import math
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision import transforms as tv
from torchvision.transforms import InterpolationMode, functional

from lib.dataset import transforms
from lib.dataset.images import FileImages
from lib.dataset.transforms import PadCrop, RandomResizedCrop, ResizeCenterCrop, ResizeCornerCrop, ResizeWhole
from tests.dataset.cropping import crop, draws_of

SIZES = [(1, 1), (2, 1), (1, 3), (7, 5), (32, 32), (111, 113), (112, 112), (129, 128), (348, 261), (20, 600)]


def noise_image(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def torchvision_center_crop(image, size, short_side):
    resized = functional.resize(tensor_of(image), short_side, InterpolationMode.BILINEAR, antialias=True)
    return functional.center_crop(resized, size).permute(1, 2, 0).numpy()


def tensor_of(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def assert_form(array, size):
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.uint8
    assert array.shape == (size, size, 3)


def assert_equal_up_to_rounding(ours, image):
    """Compare under rounding: libraries use the same filter with different precision, most visible on noise."""
    difference = np.abs(ours.astype(int) - np.asarray(image))
    assert difference.max() <= 2
    assert difference.mean() <= 0.3 or ours.size < 1000


@pytest.mark.parametrize('width_height', SIZES, ids=str)
@pytest.mark.parametrize('size', [1, 32, 112])
def test_random_resized_crop_equals_torchvision_for_its_box(width_height, size):
    image = noise_image(*width_height)
    transform = RandomResizedCrop(size, flip_probability=0.5)
    for seed in range(20):
        draws = draws_of(transform, np.random.default_rng(seed))
        result = crop(transform, image, draws)
        left, top, right, bottom = transform.box(*image.size, draws[1:])
        region = (top, left, bottom - top, right - left, [size, size])
        expected = functional.resized_crop(tensor_of(image), *region, antialias=True)
        in_pillow = functional.resized_crop(image, *region)
        print('seed', seed)
        if draws[0] < 0.5:
            expected, in_pillow = functional.hflip(expected), functional.hflip(in_pillow)
        assert_form(result, size)
        assert_equal_up_to_rounding(result, expected.permute(1, 2, 0))
        assert_equal_up_to_rounding(result, in_pillow)


@pytest.mark.parametrize('width_height', [(348, 261), (100, 100), (30, 200), (90, 45)], ids=str)
def test_boxes_have_torchvisions_distribution(width_height):
    image = Image.new('RGB', width_height)
    transform = RandomResizedCrop(112)
    rng = np.random.default_rng(1)
    ours = np.array([transform.box(*image.size, draws_of(transform, rng)) for _ in range(4000)])
    torch.manual_seed(1)
    theirs = []
    for _ in range(4000):
        top, left, height, width = tv.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        theirs.append((left, top, left + width, top + height))
    theirs = np.array(theirs)

    def statistics(boxes):
        left, top, right, bottom = boxes.T
        width, height = right - left, bottom - top
        return {
            'left': left,
            'top': top,
            'width': width,
            'height': height,
            'area': width * height,
            'ratio': width / height,
            'center': left + right,
        }

    our_statistics, their_statistics = statistics(ours), statistics(theirs)
    for name, values in our_statistics.items():
        p_value = stats.ks_2samp(values, their_statistics[name]).pvalue
        assert p_value > 1e-3, f'{name}: p = {p_value}, seed 1'


def test_area_is_uniform_and_ratio_log_uniform_where_everything_fits():
    # Crops this small always fit, so nothing is rejected and the distributions are the drawn ones.
    transform = RandomResizedCrop(8, scale=(0.1, 0.3), ratio=(0.5, 2.0))
    rng = np.random.default_rng(2)
    boxes = np.array([transform.box(4000, 4000, draws_of(transform, rng)) for _ in range(4000)], dtype=np.float64)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = stats.kstest(width * height / 16e6, stats.uniform(0.1, 0.2).cdf).pvalue
    ratio = stats.kstest(np.log(width / height), stats.uniform(-math.log(2), 2 * math.log(2)).cdf).pvalue
    assert min(area, ratio) > 1e-3, 'seed 2'


@pytest.mark.parametrize('width_height', [(1000, 10), (10, 1000), (1, 700), (700, 1), (50, 50)], ids=str)
def test_the_fallback_equals_torchvision(width_height):
    # Ten rejected draws (an area above the image's) lead to the central crop.
    image = Image.new('RGB', width_height)
    scale, ratio = (2.0, 2.0), (3 / 4, 4 / 3)
    top, left, height, width = tv.RandomResizedCrop.get_params(image, scale, ratio)
    box = RandomResizedCrop(8, scale, ratio).box(*width_height, np.random.default_rng(0).random(40).tolist())
    assert box == (left, top, left + width, top + height)


def test_flip_probability():
    image = Image.fromarray(np.tile(np.array([[[0] * 3, [255] * 3]], dtype=np.uint8), (2, 1, 1)))
    upright = np.asarray(image)
    rng = np.random.default_rng(3)
    for make in (
        lambda p: RandomResizedCrop(2, (1.0, 1.0), (1.0, 1.0), p),
        lambda p: PadCrop(2, 0, p),
    ):

        def result_of(probability, make=make):
            transform = make(probability)
            return crop(transform, image, draws_of(transform, rng))

        assert all(np.array_equal(result_of(0.0), upright) for _ in range(20))
        assert all(np.array_equal(result_of(1.0), upright[:, ::-1]) for _ in range(20))
        flips = sum(not np.array_equal(result_of(0.3), upright) for _ in range(2000))
        assert stats.binomtest(flips, 2000, 0.3).pvalue > 1e-3, 'seed 3'


@pytest.mark.parametrize('width_height', SIZES, ids=str)
@pytest.mark.parametrize(
    ('size', 'crop_ratio', 'short_side'),
    [(112, 0.875, 128), (32, 1.0, 32), (224, 0.875, 256), (96, 0.9, 106), (33, 1.3, 25), (1, 0.875, 1)],
)
def test_resize_center_crop_equals_torchvision(width_height, size, crop_ratio, short_side):
    image = noise_image(*width_height)
    result = crop(ResizeCenterCrop(size, crop_ratio), image)
    assert_form(result, size)
    if short_side > 1:  # torch confuses the axes of an image one pixel wide
        assert_equal_up_to_rounding(result, torchvision_center_crop(image, size, short_side))
    resized = functional.resize(image, short_side, InterpolationMode.BILINEAR)
    assert_equal_up_to_rounding(result, functional.center_crop(resized, size))


@pytest.mark.parametrize('seed', range(60))
def test_resize_center_crop_of_random_sizes(seed):
    rng = random.Random(seed)
    image = noise_image(rng.randint(1, 300), rng.randint(1, 300), seed)
    size, crop_ratio = rng.randint(1, 150), rng.uniform(0.5, 1.5)
    short_side = max(1, math.floor(size / crop_ratio))
    expected = torchvision_center_crop(image, size, short_side)
    assert_equal_up_to_rounding(crop(ResizeCenterCrop(size, crop_ratio), image), expected)


@pytest.mark.parametrize('width_height', [(3, 900), (900, 3), (40, 300), (2, 1501)], ids=str)
@pytest.mark.parametrize(('size', 'crop_ratio'), [(112, 0.875), (50, 1.25)])
def test_a_partly_resized_strip_equals_a_fully_resized_one(monkeypatch, width_height, size, crop_ratio):
    image = noise_image(*width_height)
    whole = crop(ResizeCenterCrop(size, crop_ratio), image)
    monkeypatch.setattr(transforms, 'MAX_RESIZED_PIXELS', 0)
    part = crop(ResizeCenterCrop(size, crop_ratio), image)
    assert_form(part, size)
    assert np.abs(part.astype(int) - whole).max() <= 1


def test_an_extreme_strip_needs_little_memory():
    assert_form(crop(ResizeCenterCrop(224), Image.new('RGB', (1, 60_000), 'red')), 224)
    assert_form(crop(ResizeCenterCrop(224), Image.new('RGB', (60_000, 1), 'red')), 224)


def photo_like(width, height, seed):
    """Return an image with edges and gradients, but without the noise in which the order of two passes shows."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 6), max(2, width // 6), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


@pytest.mark.parametrize('seed', range(30))
def test_bicubic_center_crop_equals_pillow(seed):
    rng = random.Random(seed)
    image = photo_like(rng.randint(8, 300), rng.randint(8, 300), seed)
    size, crop_ratio = rng.randint(8, 150), rng.uniform(0.5, 1.0)
    resized = functional.resize(image, math.floor(size / crop_ratio), InterpolationMode.BICUBIC)
    expected = functional.center_crop(resized, size)
    found = crop(ResizeCenterCrop(size, crop_ratio, interpolation='bicubic'), image)
    assert_equal_up_to_rounding(found, expected)
    if size > 40:
        assert np.abs(crop(ResizeCenterCrop(size, crop_ratio), image).astype(int) - expected).max() > 2, 'bilinear'


@pytest.mark.parametrize('seed', range(30))
def test_bicubic_training_crops_equal_pillow(seed):
    rng = np.random.default_rng(seed)
    image = photo_like(*rng.integers(60, 300, 2), seed)
    transform = RandomResizedCrop(64, interpolation='bicubic', flip_probability=0.0)
    draws = draws_of(transform, rng)
    box = transform.box(*image.size, draws[1:])
    expected = image.crop(box).resize((64, 64), Image.Resampling.BICUBIC)
    assert_equal_up_to_rounding(crop(transform, image, draws), expected)


def test_bicubic_boxes_within_pixels_and_tiny_results_are_resized_by_pillow(monkeypatch):
    image = photo_like(3, 900, 1)
    whole = crop(ResizeCenterCrop(112, interpolation='bicubic'), image)
    tiny = crop(ResizeCenterCrop(2, 1.0, interpolation='bicubic'), photo_like(40, 40, 2))
    expected = photo_like(40, 40, 2).resize((2, 2), Image.Resampling.BICUBIC)
    assert np.array_equal(tiny, np.asarray(expected))
    monkeypatch.setattr(transforms, 'MAX_RESIZED_PIXELS', 0)
    part = crop(ResizeCenterCrop(112, interpolation='bicubic'), image)
    assert np.abs(part.astype(int) - whole).max() <= 2
    assert np.abs(crop(ResizeCenterCrop(112), image).astype(int) - whole).max() > 2


def test_pad_crop_equals_torchvision_for_its_offset():
    image = noise_image(32, 32)
    padded = np.asarray(functional.pad(image, 4))
    windows = {
        flipped[top : top + 32, left : left + 32].tobytes()
        for flipped in (padded, padded[:, ::-1])
        for top in range(9)
        for left in range(9)
    }
    transform = PadCrop(32, 4)
    results = set()
    for seed in range(2500):
        result = crop(transform, image, draws_of(transform, np.random.default_rng(seed)))
        assert_form(result, 32)
        assert result.tobytes() in windows, f'seed {seed}'
        results.add(result.tobytes())
    assert results == windows  # all 162 of them occur


def test_pad_crop_offsets_are_uniform():
    # One white pixel in the middle shows the offset.
    pixels = np.zeros((9, 9, 3), dtype=np.uint8)
    pixels[4, 4] = 255
    image, transform, rng = Image.fromarray(pixels), PadCrop(9, 4, 0.0), np.random.default_rng(4)
    counts = sum((crop(transform, image, draws_of(transform, rng))[:, :, 0] // 255).astype(int) for _ in range(8100))
    assert counts.sum() == 8100
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3, 'seed 4'


def test_pad_crop_resizes_other_images_first():
    image = noise_image(50, 40)
    center = crop(ResizeCenterCrop(32, 1.0), image)
    assert np.array_equal(crop(PadCrop(32, 0, 0.0), image, [0.5, 0.0, 0.0]), center)
    # Draws of 0 shift by the whole padding; the shift uncovers zeros, not pixels outside of the central crop.
    shifted = np.zeros_like(center)
    shifted[4:, 4:] = center[:-4, :-4]
    assert np.array_equal(crop(PadCrop(32, 4, 0.0), image, [0.5, 0.0, 0.0]), shifted)
    assert not crop(PadCrop(32, 40, 0.0), image, [0.5, 0.0, 0.0]).any(), 'shifted off the canvas'


@pytest.mark.parametrize('transform', [RandomResizedCrop(24), PadCrop(32, 4), ResizeCenterCrop(24)], ids=repr)
def test_is_a_pure_function_that_pickles(transform):
    image = noise_image(40, 30)
    before = image.tobytes()
    draws = draws_of(transform, np.random.default_rng(5))
    first = crop(transform, image, draws)
    np.random.seed(0)  # noqa: NPY002 (global states must not matter)
    torch.manual_seed(0)
    random.seed(0)
    second = crop(pickle.loads(pickle.dumps(transform)), image, draws)
    assert np.array_equal(first, second)
    assert image.tobytes() == before
    with pytest.raises(AttributeError):
        transform.size = 3


@pytest.mark.parametrize(
    ('make', 'name'),
    [
        (lambda: RandomResizedCrop(0), 'size'),
        (lambda: RandomResizedCrop(8, scale=(0.0, 1.0)), 'scale'),
        (lambda: RandomResizedCrop(8, scale=(0.9, 0.1)), 'scale'),
        (lambda: RandomResizedCrop(8, ratio=(2.0, 1.0)), 'ratio'),
        (lambda: RandomResizedCrop(8, flip_probability=1.5), 'flip_probability'),
        (lambda: PadCrop(8, -1), 'padding'),
        (lambda: ResizeCenterCrop(8, 0.0), 'crop_ratio'),
        (lambda: ResizeCenterCrop(8, math.nan), 'crop_ratio'),
    ],
)
def test_refuses_bad_parameters(make, name):
    with pytest.raises(ValueError, match=name):
        make()


@pytest.mark.process
def test_worker_imports_stay_light():
    code = 'import sys, lib.dataset.transforms, lib.dataset.images; print({"torch"} & set(sys.modules))'
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == 'set()'


@pytest.mark.skipif('REAL_PHOTOS' not in os.environ, reason='REAL_PHOTOS is not set')
def test_real_photos_equal_torchvisions_pipeline():
    root = Path(os.environ['REAL_PHOTOS'])
    paths = sorted(path for path in root.rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    names = [str(path.relative_to(root)) for path in paths[:: max(1, len(paths) // 10)][:10]]
    assert len(names) == 10
    images = FileImages(names, str(root))
    test_transform, train_transform = ResizeCenterCrop(112), RandomResizedCrop(112, flip_probability=0.0)
    bicubic_transform = ResizeCenterCrop(112, interpolation='bicubic')
    bicubic = tv.Compose([tv.Resize(128, InterpolationMode.BICUBIC), tv.CenterCrop(112)])
    reference = tv.Compose([tv.Resize(128), tv.CenterCrop(112)])
    for row, name in enumerate(names):
        photo = Image.open(root / name).convert('RGB')
        whole = images.load(row)
        assert_equal_up_to_rounding(crop(test_transform, whole), reference(photo))
        assert_equal_up_to_rounding(crop(bicubic_transform, whole), bicubic(photo))
        draws = draws_of(train_transform, np.random.default_rng(row))
        left, top, right, bottom = train_transform.box(*photo.size, draws[1:])
        expected = functional.resized_crop(photo, top, left, bottom - top, right - left, [112, 112])
        assert_equal_up_to_rounding(crop(train_transform, whole, draws), expected)


@pytest.mark.parametrize(('width', 'height'), [(90, 60), (60, 90), (64, 64), (33, 200), (8, 8)])
def test_five_crops_equal_torchvision(width, height):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    size, ratio = 32, 0.8
    resized = functional.resize(image, math.floor(size / ratio))
    corners = functional.five_crop(resized, [size, size])[:4]  # top left, top right, bottom left, bottom right
    sides = [(right, bottom) for bottom in (False, True) for right in (False, True)]
    for corner, (right, bottom) in zip(corners, sides, strict=True):
        params = ResizeCornerCrop(size, ratio, right, bottom).crop_params(width, height)
        left, top = ((length - size) * far for length, far in zip(resized.size, (right, bottom), strict=True))
        assert (params.width, params.height, -params.left, -params.top) == (*resized.size, left, top)
        assert corner.size == (size, size)
        assert np.array_equal(np.asarray(corner), np.asarray(resized)[top : top + size, left : left + size])


@pytest.mark.parametrize(('width', 'height'), [(90, 60), (60, 90), (64, 64), (1, 5000), (3, 2)])
def test_the_whole_image_is_centered_on_zeros(width, height):
    params = ResizeWhole(32).crop_params(width, height)
    assert params.box == (0, 0, width, height)
    assert max(params.width, params.height) == 32
    assert min(params.width, params.height) == max(1, round(min(width, height) * 32 / max(width, height)))
    assert abs(2 * params.left + params.width - 32) <= 1
    assert abs(2 * params.top + params.height - 32) <= 1
    assert params.frame == (params.left, params.top, params.left + params.width, params.top + params.height)
