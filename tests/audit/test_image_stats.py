import numpy as np
import pytest
from PIL import Image

from lib.audit.duplicates import differences
from lib.audit.image_stats import FORMATS, color_details, image_stats
from lib.dataset.decode import DecodeError, decode
from tests.audit.synthetic import NEAR_COPIES, UNREADABLE, encode, jpeg_with_extra_bytes, synthetic_image


def difference(first: bytes, second: bytes) -> float:
    thumbnails = [color_details(data)[1].reshape(1, -1, 3) for data in (first, second)]
    return float(differences(*thumbnails)[0])


@pytest.mark.parametrize('name', UNREADABLE)
def test_unreadable(name):
    with pytest.raises(DecodeError):
        image_stats(UNREADABLE[name])


@pytest.mark.process
@pytest.mark.parametrize('name', FORMATS[:-2])
def test_formats(name):
    if name == 'HEIC':
        pytest.importorskip('pillow_heif').register_heif_opener()
    writers = {'JPEG': 'MPO', 'JPEG 2000': 'JPEG2000', 'HEIC': 'HEIF'}
    stats = image_stats(encode(synthetic_image(1), writers.get(name, name)))
    assert (stats.width, stats.height, FORMATS[stats.format], stats.warning) == (120, 90, name, '')


def test_thumbnail_equals_that_of_the_training_decoder():
    data = encode(synthetic_image(3, 300, 200), quality=90)
    gray = decode(data).convert('L').resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2.0)
    assert np.abs(image_stats(data).thumbnail.astype(int) - np.asarray(gray)).max() <= 2


def test_pixels_in_memory_have_the_digests_of_files():
    image = synthetic_image(4, 32, 32)
    pixels, file = image_stats(np.asarray(image)), image_stats(encode(image, 'PNG'))
    assert pixels.digest == file.digest
    assert FORMATS[pixels.format] == 'pixels'
    assert color_details(np.asarray(image))[0] == color_details(encode(image, 'PNG'))[0]


def test_metadata_does_not_change_the_digest():
    exif = Image.Exif()
    exif[0x010F] = 'a camera'
    plain, tagged = encode(synthetic_image(2)), encode(synthetic_image(2), exif=exif, comment=b'bought here')
    assert plain != tagged
    assert image_stats(plain).digest == image_stats(tagged).digest
    assert color_details(plain)[0] == color_details(tagged)[0]


def test_png_compression_does_not_change_the_digest():
    fast, small = (encode(synthetic_image(2), 'PNG', compress_level=level) for level in (1, 9))
    assert fast != small
    assert image_stats(fast).digest == image_stats(small).digest


@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_are_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(synthetic_image(2), exif=exif, quality=95)
    upright = decode(data)
    stats = image_stats(data)
    assert (stats.width, stats.height) == upright.size
    again = image_stats(encode(upright, quality=95))
    assert np.abs(stats.thumbnail.astype(int) - again.thumbnail).mean() < 3


def test_cmyk_is_decoded_by_pillow():
    assert image_stats(encode(synthetic_image(2).convert('CMYK'))).width == 120


def test_error_from_which_the_decoder_recovers_is_a_warning():
    assert decode(jpeg_with_extra_bytes()).size == (120, 90)
    assert 'extraneous bytes' in image_stats(jpeg_with_extra_bytes()).warning


def test_same_gray_is_not_the_same_color():
    """Two colors of one brightness: only the digests in color differ."""
    red, green = (Image.new('RGB', (40, 40), color) for color in ((150, 60, 60), (60, 106, 60)))
    first, second = (encode(image, 'PNG') for image in (red, green))
    assert np.asarray(red.convert('L'))[0, 0] == np.asarray(green.convert('L'))[0, 0]
    assert image_stats(first).digest == image_stats(second).digest
    assert color_details(first)[0] != color_details(second)[0]


@pytest.mark.parametrize('name', NEAR_COPIES)
def test_near_copies_differ_little(name):
    for seed in range(5):
        image = synthetic_image(seed, 240, 200)
        assert difference(encode(image, quality=90), NEAR_COPIES[name](image)) < 0.13


def test_different_images_differ_much():
    thumbnails = np.stack([color_details(encode(synthetic_image(seed)))[1].reshape(-1, 3) for seed in range(30)])
    first, second = np.triu_indices(30, 1)
    assert differences(thumbnails[first], thumbnails[second]).min() > 0.3


def on_white(color: tuple[int, int, int], box: tuple[int, int, int, int]) -> bytes:
    image = Image.new('RGB', (320, 320), 'white')
    image.paste(color, box)
    return encode(image, quality=90)


def test_small_products_on_white_are_compared_by_content():
    bottle = on_white((20, 60, 20), (140, 100, 180, 220))
    assert difference(bottle, on_white((20, 60, 20), (140, 100, 180, 220))) == 0
    assert difference(bottle, on_white((200, 30, 30), (140, 100, 180, 220))) > 0.13
    assert difference(bottle, on_white((20, 60, 20), (100, 140, 220, 180))) > 0.13


def test_images_without_content_are_not_similar():
    white = encode(Image.new('RGB', (50, 50), 'white'))
    assert difference(white, white) == np.inf
