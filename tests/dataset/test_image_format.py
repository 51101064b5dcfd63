"""Formats by the first bytes, with Pillow as the oracle."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from lib.dataset.decode import DecodeError, decode
from lib.dataset.image_format import HEADER_BYTES, HEIC_HINT, hint_of, image_format
from lib.dataset.lazy_image import open_lazy_image

pillow_heif = pytest.importorskip('pillow_heif')
pillow_heif.register_heif_opener()

NAMES = {'JPEG': 'JPEG', 'MPO': 'JPEG', 'PNG': 'PNG', 'WEBP': 'WebP', 'BMP': 'BMP', 'GIF': 'GIF', 'TIFF': 'TIFF',
         'AVIF': 'AVIF', 'JPEG2000': 'JPEG 2000', 'HEIF': 'HEIC'}  # fmt: skip
IN_A_PROCESS = pytest.mark.process  # in which AVIF, HEIC and JPEG 2000 are decoded
OTHERS = ('ICO', 'PPM', 'TGA', 'PCX', 'EPS', 'PDF', 'SGI', 'DDS')


def picture(mode: str = 'RGB', size: tuple[int, int] = (70, 40)) -> Image.Image:
    wide, high = np.arange(size[0]), np.arange(size[1])[:, None]
    planes = [wide * 3 + 0 * high, high * 5 + 0 * wide, wide + high]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8)).convert(mode)


def encode(name: str, image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


@IN_A_PROCESS
@pytest.mark.parametrize('name', [*NAMES, *OTHERS])
def test_formats_are_those_of_pillow_that_the_decoder_reads(name):
    data = encode(name, picture())
    assert image_format(data[:HEADER_BYTES]) == NAMES.get(name)
    if name in NAMES:
        image = Image.open(io.BytesIO(data))
        assert image.format in (name, 'JPEG')
        assert decode(data).size == image.size
    else:
        with pytest.raises(DecodeError, match='no readable image of a known format'):
            decode(data)


def test_what_has_no_known_beginning_cannot_be_decoded():
    seed = int(np.random.default_rng().integers(2**32))
    print('seed', seed)
    random = np.random.default_rng(seed)
    files = [encode(name, picture()) for name in NAMES]
    num_unknown = 0
    for trial in range(300):
        data = bytearray(files[trial % len(files)])
        for position in random.integers(0, 24, int(random.integers(1, 4))).tolist():
            data[position] = int(random.integers(256))
        if image_format(bytes(data[:HEADER_BYTES])) is None:
            num_unknown += 1
            with pytest.raises(DecodeError):
                decode(bytes(data))
    assert num_unknown > 50


def container(major: bytes, *brands: bytes) -> bytes:
    return (16 + 4 * len(brands)).to_bytes(4, 'big') + b'ftyp' + major + b'\0\0\0\0' + b''.join(brands)


@pytest.mark.parametrize(
    ('header', 'name'),
    [
        (container(b'heic', b'mif1', b'MiHE', b'miaf', b'heic'), 'HEIC'),
        (container(b'mif1', b'heic'), 'HEIC'),
        (container(b'msf1', b'hevc'), 'HEIC'),
        (container(b'mif1', b'miaf', b'avif'), 'AVIF'),
        (container(b'avis', b'msf1'), 'AVIF'),
        (container(b'isom', b'iso2', b'avc1', b'mp41'), None),
        (container(b'qt  ', b'qt  '), None),
        (container(b'crx ', b'isom'), None),
        (container(b'mif1')[:10] + b'avif', None),  # cut off
        (b'BM is a company', None),
        (b'RIFF....WAVE', None),
        (b'', None),
        (b'\xff', None),
    ],
)
def test_media_files_and_texts(header, name):
    assert image_format(header) == name


@IN_A_PROCESS
@pytest.mark.parametrize('name', ['AVIF', 'JPEG2000', 'HEIF'])
def test_cut_off_files_are_damaged(name):
    data = encode(name, picture(size=(160, 120)))
    with pytest.raises(DecodeError):
        decode(data[: len(data) // 2])


@IN_A_PROCESS
@pytest.mark.parametrize('orientation', range(1, 9))
def test_avif_is_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode('AVIF', picture(), exif=exif.tobytes(), quality=95, subsampling='4:4:4')
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert decode(data).size == upright.size
    assert np.array_equal(np.asarray(decode(data)), np.asarray(upright.convert('RGB')))


@IN_A_PROCESS
@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA'])
@pytest.mark.parametrize('name', ['AVIF', 'JPEG2000'])
def test_modes_become_rgb(name, mode):
    image = open_lazy_image(encode(name, picture(mode)))
    assert image.pixels(1.0)[0].shape == (40, 70, 3)


@IN_A_PROCESS
@pytest.mark.parametrize('name', ['AVIF', 'JPEG2000', 'HEIF'])
def test_the_size_is_checked_before_decoding(name):
    with pytest.raises(DecodeError, match='70 x 40 pixels; at most 100 are allowed'):
        decode(encode(name, picture()), max_pixels=100)


def test_without_its_package_heic_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'pillow_heif', None)
    with pytest.raises(DecodeError) as caught:
        decode(encode('HEIF', picture()))
    assert str(caught.value) == 'a HEIC image; to read HEIC photos: python -m pip install pillow-heif'
    assert hint_of(['no such file', str(caught.value)]) == f'; {HEIC_HINT}'
    assert hint_of(['no such file']) == ''
