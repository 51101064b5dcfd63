import numpy as np
import pytest
from PIL import Image

from lib.audit.duplicates import differences
from lib.audit.image_stats import FORMATS, look_at, look_closer
from lib.dataset.decode import DecodeError, decode
from tests.audit.drawn import NEAR_COPIES, UNREADABLE, drawn, encoded, odd_jpeg


def difference(first: bytes, second: bytes) -> float:
    pictures = [look_closer(data)[1].reshape(1, -1, 3) for data in (first, second)]
    return float(differences(*pictures)[0])


@pytest.mark.parametrize('name', UNREADABLE)
def test_unreadable(name):
    with pytest.raises(DecodeError):
        look_at(UNREADABLE[name])


@pytest.mark.parametrize('name', FORMATS[:-1])
def test_formats(name):
    look = look_at(encoded(drawn(1), 'MPO' if name == 'JPEG' else name))
    assert (look.width, look.height, FORMATS[look.format], look.fault) == (120, 90, name, '')


def test_grey_is_what_the_decoder_sees():
    data = encoded(drawn(3, 300, 200), quality=90)
    grey = decode(data).convert('L').resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2.0)
    assert np.abs(look_at(data).grey.astype(int) - np.asarray(grey)).max() <= 2


def test_pixels_in_memory_are_looked_at_as_files_are():
    image = drawn(4, 32, 32)
    look, file = look_at(np.asarray(image)), look_at(encoded(image, 'PNG'))
    assert look.digest == file.digest
    assert FORMATS[look.format] == 'pixels'
    assert look_closer(np.asarray(image))[0] == look_closer(encoded(image, 'PNG'))[0]


def test_metadata_makes_no_other_picture():
    exif = Image.Exif()
    exif[0x010F] = 'a camera'
    plain, tagged = encoded(drawn(2)), encoded(drawn(2), exif=exif, comment=b'bought here')
    assert plain != tagged
    assert look_at(plain).digest == look_at(tagged).digest
    assert look_closer(plain)[0] == look_closer(tagged)[0]


def test_a_png_without_loss_is_the_same_picture_in_another_compression():
    fast, small = (encoded(drawn(2), 'PNG', compress_level=level) for level in (1, 9))
    assert fast != small
    assert look_at(fast).digest == look_at(small).digest


@pytest.mark.parametrize('orientation', range(1, 9))
def test_pictures_are_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(drawn(2), exif=exif, quality=95)
    upright = decode(data)
    look = look_at(data)
    assert (look.width, look.height) == upright.size
    again = look_at(encoded(upright, quality=95))
    assert np.abs(look.grey.astype(int) - again.grey).mean() < 3


def test_cmyk_is_left_to_pillow():
    assert look_at(encoded(drawn(2).convert('CMYK'))).width == 120


def test_a_fault_that_the_decoder_gets_over_is_told():
    assert decode(odd_jpeg()).size == (120, 90)
    assert 'extraneous bytes' in look_at(odd_jpeg()).fault


def test_same_grey_is_not_same_colour():
    """Two colours of one brightness: the second look tells them apart."""
    red, green = (Image.new('RGB', (40, 40), colour) for colour in ((150, 60, 60), (60, 106, 60)))
    first, second = (encoded(image, 'PNG') for image in (red, green))
    assert np.asarray(red.convert('L'))[0, 0] == np.asarray(green.convert('L'))[0, 0]
    assert look_at(first).digest == look_at(second).digest
    assert look_closer(first)[0] != look_closer(second)[0]


@pytest.mark.parametrize('name', NEAR_COPIES)
def test_near_copies_differ_little(name):
    for seed in range(5):
        image = drawn(seed, 240, 200)
        assert difference(encoded(image, quality=90), NEAR_COPIES[name](image)) < 0.13


def test_others_differ_much():
    pictures = np.stack([look_closer(encoded(drawn(seed)))[1].reshape(-1, 3) for seed in range(30)])
    first, second = np.triu_indices(30, 1)
    assert differences(pictures[first], pictures[second]).min() > 0.3


def on_white(colour: tuple[int, int, int], box: tuple[int, int, int, int]) -> bytes:
    image = Image.new('RGB', (320, 320), 'white')
    image.paste(colour, box)
    return encoded(image, quality=90)


def test_small_products_before_white_share_their_background_only():
    bottle = on_white((20, 60, 20), (140, 100, 180, 220))
    assert difference(bottle, on_white((20, 60, 20), (140, 100, 180, 220))) == 0
    assert difference(bottle, on_white((200, 30, 30), (140, 100, 180, 220))) > 0.13
    assert difference(bottle, on_white((20, 60, 20), (100, 140, 220, 180))) > 0.13


def test_pictures_without_content_are_like_nothing():
    white = encoded(Image.new('RGB', (50, 50), 'white'))
    assert difference(white, white) == np.inf
