"""Regions of JPEG files: equal to a whole decode, with TurboJPEG 3 or without; damaged files are reported equally.

Most machines have no TurboJPEG 3. There, a fake cuts regions out of a whole decode, and tests of the library are
skipped. LD_LIBRARY_PATH names the folder of one that is not installed.
"""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from lib.dataset import lazy_image, turbojpeg
from lib.dataset.crop_resize import crop_resize
from lib.dataset.decode import DecodeError
from lib.dataset.images import FileImages
from lib.dataset.jpeg_file import read_header
from lib.dataset.lazy_image import open_lazy_image, reduced_box
from lib.dataset.reader import ALL_VIEWS, BatchReader, BatchRequest
from lib.dataset.transforms import CropParams, RandomResizedCrop
from tests.dataset.test_lazy_image import encode, exif_of, smooth

NOISE = np.random.default_rng(0).integers(0, 256, (331, 413, 3), np.uint8)
needs_library = pytest.mark.skipif(not turbojpeg.is_available(), reason='TurboJPEG 3 is not installed')


def whole(data, reduction):
    width, height = Image.open(io.BytesIO(data)).size
    sides = {'min_width': -(-width // reduction), 'min_height': -(-height // reduction)}
    return simplejpeg.decode_jpeg(data, 'RGB', **sides)


def cut(pixels, box):
    left, top, right, bottom = box
    return pixels[top:bottom, left:right]


@pytest.fixture(params=['fake', pytest.param('library', marks=needs_library)])
def regions(request, monkeypatch):
    """Boxes that are decoded alone, by the library or by a fake."""
    boxes, decode = [], turbojpeg.decode_region

    def counted(data, reduction, box):
        pixels = cut(whole(data, reduction), box) if request.param == 'fake' else decode(data, reduction, box)
        boxes.append(box)
        return pixels

    monkeypatch.setattr(lazy_image, 'decode_region', counted)
    monkeypatch.setattr(lazy_image, 'is_available', lambda: True)
    monkeypatch.setattr(lazy_image, '_LEAST_PIXELS', 0)
    return boxes


@needs_library
@pytest.mark.parametrize('sampling', ['444', '422', '420', '440', '411', 'Gray'])
def test_a_region_equals_the_same_part_of_a_whole_decode(sampling):
    generator, num_regions = np.random.default_rng(0), 0
    for width, height in [(413, 331), (33, 64), (1, 1), (7, 190)]:
        image = np.ascontiguousarray(NOISE[:height, :width])
        data = simplejpeg.encode_jpeg(image, 90, colorsubsampling=sampling)
        for reduction in (1, 2, 4, 8):
            expected, reduced = whole(data, reduction), (-(-width // reduction), -(-height // reduction))
            if expected.shape[1::-1] != reduced:
                continue  # libjpeg cannot distinguish the scales of tiny images
            for _ in range(20):
                (left, right), (top, bottom) = (sorted(generator.integers(0, side + 1, 2)) for side in reduced)
                box = (int(left), int(top), int(right), int(bottom))
                if left < right and top < bottom:
                    assert np.array_equal(turbojpeg.decode_region(data, reduction, box), cut(expected, box)), box
                    num_regions += 1
    assert num_regions > 150


@needs_library
@pytest.mark.parametrize('options', [{'restart_marker_blocks': 5}, {'restart_marker_rows': 1}], ids=str)
def test_restart_intervals_do_not_change_a_region(options):
    data = encode(Image.fromarray(NOISE), **options)
    box = (100, 90, 210, 170)
    assert np.array_equal(turbojpeg.decode_region(data, 1, box), cut(whole(data, 1), box))


@needs_library
@pytest.mark.parametrize('box', [(0, 0, 414, 10), (-1, 0, 5, 5), (5, 5, 5, 9), (0, 300, 9, 332)], ids=str)
def test_a_box_outside_of_the_image_is_an_error(box):
    with pytest.raises(ValueError, match='outside of 413 x 331'):
        turbojpeg.decode_region(simplejpeg.encode_jpeg(NOISE), 1, box)


@needs_library
def test_a_damaged_header_or_scan_is_an_error_and_the_next_file_is_decoded():
    data = simplejpeg.encode_jpeg(NOISE)
    scan = read_header(data).scan_start
    for damaged in (data[: scan // 2], data[: scan + 100], b'', data[:scan] + bytes(3000)):
        with pytest.raises(ValueError, match=r'JPEG|argument'):
            turbojpeg.decode_region(damaged, 1, (0, 200, 50, 300))
    assert np.array_equal(turbojpeg.decode_region(data, 2, (3, 4, 50, 60)), cut(whole(data, 2), (3, 4, 50, 60)))


def test_without_the_library_everything_is_decoded(monkeypatch):
    monkeypatch.setattr(lazy_image, 'is_available', lambda: False)
    monkeypatch.setattr(lazy_image, '_LEAST_PIXELS', 0)
    monkeypatch.setattr(lazy_image, 'decode_region', lambda *_: pytest.fail('a region was decoded'))
    data = encode(smooth(300, 200))
    assert np.array_equal(
        open_lazy_image(data).crop(1.0, (9, 8, 70, 60), is_only_crop=True), whole(data, 1)[8:60, 9:70]
    )


def test_a_library_of_other_pixels_is_not_used(monkeypatch):
    monkeypatch.setattr(turbojpeg, 'decode_region', lambda data, reduction, box: cut(whole(data, reduction), box))
    assert turbojpeg._equals_simplejpeg()
    monkeypatch.setattr(turbojpeg, 'decode_region', lambda data, reduction, box: cut(whole(data, reduction), box) ^ 1)
    assert not turbojpeg._equals_simplejpeg()


@pytest.mark.parametrize('mcu_width', [1, 2, 4, 8, 16, 32])
def test_a_region_begins_at_an_mcu_and_has_one_more_on_each_side(mcu_width):
    for left, right in [(0, 1), (5, 70), (31, 33), (64, 99), (98, 99)]:
        first, end = turbojpeg.columns_to_decode(left, right, 99, mcu_width)
        assert first % mcu_width == 0
        assert first == 0 or mcu_width <= left - first < 2 * mcu_width
        assert end == min(99, right + mcu_width)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('scale', [1.0, 0.4])
def test_a_crop_of_a_turned_photo_is_the_same_with_and_without_regions(regions, orientation, scale):
    data = encode(smooth(317, 203), exif=exif_of(orientation))
    image = open_lazy_image(data)
    pixels, reduction = image.pixels(scale)
    for box in [(0, 0, 60, 100), (101, 87, 190, 203), (7, 9, 8, 10), (150, 11, 203, 140)]:
        crop = open_lazy_image(data).crop(scale, box, is_only_crop=True)
        assert np.array_equal(crop, cut(pixels, reduced_box(box, reduction, image.width, image.height)))
        assert np.array_equal(crop, image.crop(scale, box))
    assert len(regions) == 4


@pytest.mark.parametrize(
    'options', [{}, {'subsampling': 0}, {'restart_marker_rows': 1}, {'progressive': True}], ids=str
)
def test_a_canvas_is_the_same_with_and_without_regions(regions, options):
    data = encode(Image.fromarray(NOISE), **options)
    for box in [(30, 20, 330, 200), (300, 200, 413, 331), (5, 5, 11, 320), (0, 0, 413, 331)]:
        one, other = np.empty((2, 32, 32, 3), np.uint8)
        params = CropParams(box, 32, 32)
        crop_resize(open_lazy_image(data), params, one, is_only_crop=True)
        crop_resize(open_lazy_image(data), params, other)
        assert np.array_equal(one, other), box
    assert len(regions) == (0 if 'progressive' in options else 3)  # not of the box that is the whole image


def test_small_photos_are_decoded_whole(regions, monkeypatch):
    monkeypatch.setattr(lazy_image, '_LEAST_PIXELS', 60_001)
    open_lazy_image(encode(smooth(300, 200))).crop(1.0, (0, 0, 50, 50), is_only_crop=True)
    assert not regions


def test_several_views_of_an_image_are_decoded_once(regions):
    image = open_lazy_image(encode(smooth(300, 200)))
    pixels, _ = image.pixels(1.0)
    assert np.shares_memory(image.crop(1.0, (0, 0, 50, 50), is_only_crop=True), pixels)
    assert not regions


def test_a_reader_decodes_a_region_for_one_view_and_all_pixels_for_several(regions, tmp_path, monkeypatch):
    (tmp_path / 'photo.jpg').write_bytes(encode(Image.fromarray(NOISE)))
    images, labels, views = (
        FileImages(['photo.jpg'], str(tmp_path)),
        np.zeros(1, np.int32),
        (RandomResizedCrop(32),) * 2,
    )
    reader = BatchReader(images, labels, views[0], seed=3, extra_transforms=views[1:])
    rows = np.zeros(8, np.int64)
    alone = reader[BatchRequest(0, 0, rows)]
    assert 0 < len(regions) < 8  # some crops are almost the whole image
    num_regions = len(regions)
    together = reader[BatchRequest(0, 0, rows, view=ALL_VIEWS)]
    assert len(regions) == num_regions
    monkeypatch.setattr(lazy_image, 'is_available', lambda: False)
    for other in (together, together.more_views[0], reader[BatchRequest(0, 0, rows)]):
        assert np.array_equal(alone.pixels.numpy(), other.pixels.numpy())


def hole(data):
    middle = len(data) - 5000
    return data[:middle] + bytes(4096) + data[middle + 4096 :]


DAMAGES = {
    'truncated': lambda data: data[: len(data) * 3 // 4],
    'truncated, with an end': lambda data: data[: len(data) * 3 // 4] + b'\xff\xd9',
    'hole': hole,
    'random bytes': lambda data: data[:-5000] + np.random.default_rng(1).bytes(4000) + data[-1000:],
    'other file': lambda data: data[:-5000] + data[:4000] + data[-1000:],
}


@pytest.mark.parametrize('options', [{}, {'restart_marker_rows': 1}], ids=str)
@pytest.mark.parametrize('damage', [name for name in DAMAGES if name != 'truncated, with an end'])
def test_damage_below_a_crop_is_found(regions, damage, options):
    data = DAMAGES[damage](encode(Image.fromarray(NOISE), quality=95, **options))
    with pytest.raises(DecodeError):
        open_lazy_image(data).crop(1.0, (0, 0, 200, 60), is_only_crop=True)
    assert not regions


@needs_library
@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_in_or_above_a_crop_is_found(damage, monkeypatch):
    monkeypatch.setattr(lazy_image, '_LEAST_PIXELS', 0)
    data = DAMAGES[damage](encode(Image.fromarray(NOISE), quality=95))
    with pytest.raises(DecodeError):
        open_lazy_image(data).crop(1.0, (0, 310, 200, 331), is_only_crop=True)


def test_a_scan_without_restart_markers_in_order_is_not_certainly_intact():
    data = encode(Image.fromarray(NOISE), restart_marker_rows=1)
    start = read_header(data).scan_start
    assert turbojpeg.seems_intact(data, start)
    first = data.index(b'\xff\xd1', start)
    assert not turbojpeg.seems_intact(data[:first] + data[data.index(b'\xff\xd2', start) :], start)
    assert not turbojpeg.seems_intact(data + b'\0', start)
    assert not turbojpeg.seems_intact(data[:first] + b'\xff\xfe\0\2' + data[first:], start)
