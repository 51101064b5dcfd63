"""Missing ends, missing pixels, broken metadata: what is readable, in which orientation, against Pillow and by hand."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lib.audit.image_stats import image_stats
from lib.dataset import jpeg_file
from lib.dataset.decode import DecodeError, decode
from lib.dataset.jpeg_file import read_header
from lib.dataset.lazy_image import LazyJpegImage, open_lazy_image
from lib.dataset.upright_rgb import orientation_in
from tests.dataset.layouts import EOI, LARGE, XMP, Case, encode, png_chunk, segment, split_jpeg, three_scans
from tests.dataset.test_layouts import assert_agreement, smooth_image

JPEG_KINDS = ({}, {'progressive': True}, {'restart_marker_blocks': 3}, {'subsampling': 0, 'optimize': True})


def picture(width=61, height=35):
    return smooth_image(np.random.default_rng(2), width, height)


def is_readable(data):
    """Return whether all readers can use a file; they must agree."""
    answers = set()
    for read in (decode, lambda data: open_lazy_image(data).pixels(1.0), image_stats):
        try:
            read(data)
            answers.add(True)
        except DecodeError:
            answers.add(False)
    assert len(answers) == 1
    return answers.pop()


@pytest.mark.parametrize('options', JPEG_KINDS, ids=str)
def test_a_jpeg_is_readable_without_its_end_only(options):
    data = encode(picture(), 'JPEG', **options)
    for cut in (*range(12), *range(12, len(data), 151)):
        # A cut-off byte is often, but not always, part of the scan: its last one may only be filled up with ones.
        if cut != 3:
            assert is_readable(data[: len(data) - cut]) == (cut <= 2), cut
            if 'progressive' not in options:  # whose first scans are an image, too
                assert is_readable(data[: len(data) - cut] + EOI) == (cut <= 2), cut


def test_a_png_is_readable_without_its_end_only():
    data = encode(picture(), 'PNG')
    for cut in (*range(40), *range(40, len(data), 151)):
        if cut not in (21, 22, 23):  # the end of the deflated data, which may or may not belong to pixels
            # IEND, the checksums of the chunk and of the rows.
            assert is_readable(data[: len(data) - cut]) == (cut <= 12 + 4 + 4), cut


def test_a_png_of_one_color_is_readable_without_the_checksum_of_its_rows():
    """The last bytes are many rows, of which Pillow reads only the first ones before it asks for more bytes."""
    data = encode(Image.new('RGB', (300, 200), 'red'), 'PNG')
    assert is_readable(data[: -(12 + 4 + 4)])
    assert np.array_equal(np.asarray(decode(data[: -(12 + 4 + 4)])), np.asarray(decode(data)))
    assert not is_readable(data[: -(12 + 4 + 4 + 12)])


def without_scans(data, keep):
    header, scans = split_jpeg(data)
    return b''.join((b'\xff\xd8', *header, *(part + data for part, data in scans[:keep])))


@pytest.mark.parametrize('num_zeros', [1, 100, 5000])
@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'restart_marker_blocks': 4}], ids=str)
def test_zeros_instead_of_the_end_of_a_jpeg_are_harmless(options, num_zeros):
    data = encode(picture(), 'JPEG', quality=90, **options)
    padded = data[:-2] + bytes(num_zeros)
    assert np.array_equal(decode(padded), decode(data))
    assert np.array_equal(open_lazy_image(padded).pixels(1.0)[0], decode(data))
    assert not is_readable(data[: int(0.8 * len(data))] + bytes(num_zeros))


def test_missing_scans_are_damage():
    progressive = encode(picture(), 'JPEG', progressive=True)
    assert is_readable(without_scans(progressive, None))
    for keep in (-1, -3, 2):
        assert not is_readable(without_scans(progressive, keep))
    # With its end, a file without the last bits of coefficients is allowed (ITU T.81, G.1.1.1.2).
    assert is_readable(without_scans(progressive, -1) + EOI)
    sequential = three_scans(picture())
    assert is_readable(sequential)
    for keep in (1, 2):
        assert not is_readable(without_scans(sequential, keep))
        assert not is_readable(without_scans(sequential, keep) + EOI)


def test_a_harmless_oddity_does_not_hide_missing_data():
    """libjpeg reports its first warning only."""
    header, scans = split_jpeg(encode(picture(), 'JPEG', progressive=True))
    first = next(index for index, (_, data) in enumerate(scans) if data)
    scans[first] = (scans[first][0], scans[first][1] + b'\1\2')  # two extraneous bytes
    odd = b''.join((b'\xff\xd8', *header, *(part + data for part, data in scans)))
    assert is_readable(odd + EOI)
    assert is_readable(odd)
    assert not is_readable(odd[:-20] + EOI)


# Written by jpegtran -arithmetic; Pillow cannot write such files.
ARITHMETIC = base64.b64decode(
    '/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5a'
    'YVpQYEpRUk//yQALCAA4AEABAREA/8wABgAQEAX/2gAIAQEAAD8A0MVVtkiCErHOmgSbrIiKgYZwKpzxxywvgLkvff8AVeZgfrz8gz/sLoKS'
    'fYlosBieI+stIQXT15U/Dn/3f/2Rp9Y0/wBVlEio/wBCXeifowD1BDCayvjUEB7HVF3zAjIZENG0EaLT2cGS6VcUvcfqaP8AAmxjcp6PenD7'
    '8YfMFVWxzC2Ul1o/yuzJgfmkTgdNY8ZXBIBM5fxWvjgvS/kEHPr+IX1Mh3JmDgV4nlQxJgfRSTPZFKPMVhh4kd4RB4n7vnrDw7Cc0bVqsls5'
    '7FJ8rucgl9H9Rek9d1XgIGlZFQBadbNAtB9v37zHL+3WrB6la8ZoDA3AwFUxPuOovJKIGCb62P1i673o2zXDzA653Z/GzRwNCQITz9Xf7fHq'
    '6G2htdOIQabOtfPcN5VMTE18piyO4MSVSLkO4m3Pgi1GX6h4dQ+vPYd6fDkNNh3wXcbKyXf17yEZeQZZvwj/2Q=='
)


def test_an_arithmetic_jpeg_is_readable_without_its_end_only():
    """libjpeg has no warning for such files, and encoders omit zeros at the end, so that a few bytes may be missing."""
    assert_agreement(Case(ARITHMETIC, ARITHMETIC, True, []))
    assert_agreement(Case(ARITHMETIC[:-2], ARITHMETIC, True, []))
    start = ARITHMETIC.index(b'\xff\xda')
    for cut in (50, 100, 200, len(ARITHMETIC) - start - 20):
        assert not is_readable(ARITHMETIC[:-cut])
        assert not is_readable(ARITHMETIC[:-cut] + EOI)


def test_missing_restart_intervals_are_damage():
    data = encode(picture(), 'JPEG', restart_marker_blocks=1)
    starts = [data.index(bytes((0xFF, marker))) for marker in (0xD1, 0xD2, 0xD3)]
    assert is_readable(data)
    assert not is_readable(data[: starts[0]] + data[starts[1] :])
    assert not is_readable(data[: starts[0]] + data[starts[2] :])


def test_data_without_a_scan_header_is_damage():
    data = encode(picture(), 'JPEG', progressive=True)
    position = data.index(b'\xff\xda', data.index(b'\xff\xda') + 2)
    assert not is_readable(data[:position] + bytes(14) + data[position + 14 :])


@pytest.mark.parametrize('count', [3, 2000])
def test_stray_bytes_before_the_pixels_are_harmless(count):
    """A metadata segment may announce fewer bytes than it has."""
    data = encode(picture(), 'JPEG')
    assert_agreement(Case(data[:20] + b'\xff\xed\0\4ab' + b'x' * count + data[20:], data, True, []))


def tiff_of(orientation, order='>', kind=3):
    size = {1: 'B3x', 3: 'H2x', 4: 'I', 9: 'i', 11: 'f'}[kind]
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'IH', 8, 1)
    return head + struct.pack(order + 'HHI' + size + 'I', 0x0112, kind, 1, orientation, 0)


def app1(tiff):
    return segment(0xE1, b'Exif\0\0' + tiff)


def xmp(orientation):
    return segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0' + XMP.format(orientation).encode())


ORIENTATIONS = {
    'no metadata': (b'', 1),
    'big endian': (app1(tiff_of(6)), 6),
    'little endian': (app1(tiff_of(6, '<')), 6),
    'LONG': (app1(tiff_of(8, '<', 4)), 8),
    'SLONG': (app1(tiff_of(8, '>', 9)), 8),
    'FLOAT': (app1(tiff_of(8, '>', 11)), 8),
    'BYTE': (app1(tiff_of(6, '>', 1)), 1),  # bytes, not a number, for Pillow
    '0': (app1(tiff_of(0)), 1),
    '9': (app1(tiff_of(9)), 1),
    'second directory': (app1(b'MM\0*\0\0\0\x08\0\0\0\0\0\x0e' + tiff_of(6)[8:]), 1),
    'XMP': (xmp(3), 3),
    'XMP, then EXIF': (xmp(3) + app1(tiff_of(6)), 6),
    'EXIF, then XMP': (app1(tiff_of(6)) + xmp(3), 6),
    'two of EXIF': (app1(tiff_of(6)) + app1(tiff_of(3)), 6),
    'two of XMP': (xmp(3) + xmp(8), 8),
    'EXIF in two segments': (app1(tiff_of(6)[:13]) + app1(tiff_of(6)[13:]), 6),
    'EXIF of another kind before': (segment(0xE1, b'') + segment(0xE1, b'E') + app1(tiff_of(6)), 6),
    'fill bytes': (b'\xff\xff\xff' + app1(tiff_of(6)), 6),
    'TEM before': (b'\xff\x01' + app1(tiff_of(6)), 6),
    'RST before': (b'\xff\xd3' + app1(tiff_of(6)), 6),
    'a thumbnail with EXIF before': (segment(0xE5, encode(picture(), 'JPEG', exif=tiff_of(8))) + xmp(3), 3),
    'broken': (app1(b'garbage'), 1),
    'IndexError in Pillow': (app1(b'MM\0*\0\0\0\x08\0\x02\x01\x1a\0\x05\0\0\0\0\0\0\0\0' + tiff_of(6)[10:]), 6),
}


@pytest.mark.parametrize('number', range(len(ORIENTATIONS)), ids=list(ORIENTATIONS))
def test_orientation_of_a_jpeg(number):
    added, expected = list(ORIENTATIONS.values())[number]
    plain = encode(picture(), 'JPEG')
    after = (2, plain.index(b'\xff\xc0'), plain.index(b'\xff\xc4'))[number % 3]  # first, after DQT, after SOF
    data = plain[:after] + added + plain[after:]
    image = open_lazy_image(data)
    assert isinstance(image, LazyJpegImage)
    assert orientation_in(read_header(data).metadata) == expected
    assert (image.width, image.height) == ((61, 35) if expected < 5 else (35, 61))
    assert decode(data).size == (image.width, image.height)
    upright = plain[:2] + (app1(tiff_of(expected)) if expected > 1 else b'') + plain[2:]
    assert_agreement(Case(data, upright, True, []))


def test_metadata_after_the_first_scan_does_not_count():
    data = encode(picture(), 'JPEG', progressive=True)
    last = data.rindex(b'\xff\xda')
    assert_agreement(Case(data[:last] + app1(tiff_of(6)) + data[last:], data, True, []))


@pytest.mark.parametrize('added', [b'\xff\xd8', b'\xff\xd9', b'\xff\xf0\0\2'], ids=['SOI', 'EOI', 'JPG0'])
def test_markers_that_libjpeg_rejects(added):
    data = encode(picture(), 'JPEG')
    data = data[:20] + added + data[20:]
    with pytest.raises(OSError, match='broken data stream'):
        Image.open(io.BytesIO(data)).load()
    assert not is_readable(data)


def test_other_processes_than_8_bits_are_rejected():
    data = bytearray(encode(picture(), 'JPEG'))
    frame = data.index(b'\xff\xc0')
    for changed in (bytes((0xC1, 0, 17, 12)), bytes((0xC3, 0, 17, 8)), bytes((0xC9, 0, 17, 12)), b'\xc5\0\x11\x08'):
        data[frame + 1 : frame + 5] = changed
        assert not is_readable(bytes(data))
    assert not is_readable(bytes(data[: frame + 5]) + b'\0\0' + bytes(data[frame + 7 :]))  # no number of lines


def test_a_whole_jpeg_is_not_parsed_twice(monkeypatch):
    monkeypatch.setattr(jpeg_file.JpegFile, '__init__', lambda self, data: pytest.fail('all segments were read'))
    assert open_lazy_image(encode(picture(), 'JPEG')).pixels(0.5)[1] == 2


@pytest.mark.parametrize('oddity', ['no end', 'stray bytes', 'broken profile'])
def test_a_harmless_oddity_is_a_warning_and_does_not_prevent_a_reduced_decode(oddity):
    data = encode(picture(200, 100), 'JPEG')
    odd = {
        'no end': data[:-2],
        'stray bytes': data[:20] + b'stray' + data[20:],
        'broken profile': data[:20] + segment(0xE2, b'ICC_PROFILE\0\5\2abc') + data[20:],
    }[oddity]
    image = open_lazy_image(odd)
    pixels, reduction = image.pixels(0.5)
    assert reduction == 2
    assert np.array_equal(pixels, open_lazy_image(data).pixels(0.5)[0])
    assert image.warning
    assert image_stats(odd).warning == image.warning
    assert not image_stats(data).warning


def test_profiles_and_texts_are_not_inflated(monkeypatch):
    for name in ('chunk_iCCP', 'chunk_zTXt', 'chunk_iTXt', 'chunk_tEXt'):
        monkeypatch.setattr(PngImagePlugin.PngStream, name, lambda *args: pytest.fail('inflated'))
    data = encode(picture(), 'PNG')
    chunks = (b'iCCP', b'p\0\0'), (b'zTXt', b'Comment\0\0'), (b'iTXt', b'Comment\0\1\0\0\0')
    added = b''.join(png_chunk(kind, start + LARGE) for kind, start in chunks)
    assert is_readable(data[:33] + added + data[33:])


def test_a_large_text_with_the_orientation_is_ignored():
    data = encode(picture(), 'PNG')
    added = png_chunk(b'zTXt', b'Raw profile type exif\0\0' + LARGE)
    assert_agreement(Case(data[:33] + added + data[33:], data, True, []))


def riff(*chunks):
    body = b''.join(kind + struct.pack('<I', len(part)) + part + b'\0' * (len(part) % 2) for kind, part in chunks)
    return b'RIFF' + struct.pack('<I', len(body) + 4) + b'WEBP' + body


def webp(orientation=None, lossless=True, **options):
    exif = {'exif': b'Exif\0\0' + tiff_of(orientation)} if orientation else {}
    return encode(picture(), 'WEBP', lossless=lossless, **exif, **options)


@pytest.mark.parametrize('lossless', [True, False])
def test_webp_with_odd_chunks(lossless):
    plain = webp(6, lossless)
    bare, canvas = webp(lossless=lossless), b'\x0c' + plain[21:30]  # flags: EXIF and XMP
    image = next((kind, bare[20 : 20 + size]) for kind, size in [(bare[12:16], struct.unpack('<I', bare[16:20])[0])])
    exif, broken = (b'EXIF', tiff_of(6)), (b'EXIF', b'broken')
    extended = (b'VP8X', canvas), image
    upside_down = webp(3, lossless)
    for data, expected in (
        (riff(*extended, exif), plain),
        (riff(*extended, exif, (b'EXIF', tiff_of(3))), plain),
        (riff(*extended, (b'XMP ', XMP.format(3).encode())), upside_down),
        (riff(*extended, exif, (b'XMP ', XMP.format(3).encode())), plain),
        (riff((b'VP8X', canvas), (b'ICCP', b'broken'), (b'none', b'x'), image, exif), plain),
        (riff(*extended, broken), bare),
        (riff((b'VP8X', bytes(1) + canvas[1:]), image, exif), bare),  # without the flag of EXIF
        (riff(image, exif), bare),
        (riff(*extended, exif)[:-3], plain),  # its last entry is cut off
        (riff(*extended, exif)[:-30], bare),
        (riff(image) + b'trailing bytes', bare),
        (b'RIFF\0\0\0\0' + bare[8:], bare),
        (b'RIFF\xff\xff\xff\x7f' + bare[8:], bare),
        (bare[: len(bare) - len(image[1]) % 2], bare),  # without the byte that makes its length even
    ):
        assert_agreement(Case(data, expected, True, []))
    for cut in (2, 10, 100):
        assert not is_readable(bare[:-cut])


@pytest.mark.parametrize('name', ['control', 'application', 'comment', 'text'])
def test_gif_with_broken_extensions(name):
    data = encode(picture(), 'GIF')
    start = 13 + (3 << (data[10] & 7) + 1)
    extension = {'control': b'\xf9\1\1\0', 'application': b'\xff\0', 'comment': b'\xfe\0', 'text': b'\1\3abc\0'}[name]
    assert_agreement(Case(data[:start] + b'!' + extension + data[start:], data, True, []))
    for cut in (1, 2):
        assert_agreement(Case(data[:-cut], data, True, []))
    assert not is_readable(data[:-9])


def with_kind(tiff, tag, kind):
    """Return the TIFF with another type of a tag in its first directory."""
    data = bytearray(tiff)
    (offset,) = struct.unpack_from('<I', data, 4)
    (count,) = struct.unpack_from('<H', data, offset)
    positions = [offset + 2 + 12 * number for number in range(count)]
    struct.pack_into('<H', data, next(p for p in positions if struct.unpack_from('<H', data, p) == (tag,)) + 2, kind)
    return bytes(data)


@pytest.mark.process
@pytest.mark.parametrize('options', [{}, {'compression': 'tiff_lzw'}, {'compression': 'jpeg'}], ids=str)
@pytest.mark.parametrize('orientation', [1, 6])
def test_tiff_with_broken_tags(options, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), 'TIFF', exif=exif, dpi=(72, 72), description='a product', **options)
    for tag, kind in ((282, 2), (282, 1), (270, 3), (270, 12), (296, 2)):
        assert_agreement(Case(with_kind(data, tag, kind), data, True, []))


@pytest.mark.parametrize('options', [{'big_tiff': True}, {'save_all': True}], ids=str)
def test_tiff_of_other_forms(options):
    data = encode(picture(), 'TIFF', **options)
    assert_agreement(Case(data, data, True, []))
    assert not is_readable(data[: len(data) // 2])


@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'CMYK'])
def test_tiff_lacking_pixels_is_damaged(mode):
    data = encode(picture().convert(mode), 'TIFF', description='x', dpi=(72, 72))
    assert is_readable(data)
    for cut in (1, 2, 3, 50, 200):
        assert not is_readable(data[:-cut]), cut


@pytest.mark.process
def test_avif_with_broken_exif():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, 'a product'
    data = encode(picture(), 'AVIF', exif=exif, xmp=b'<x/>')
    assert data.count(exif.tobytes()[6:14]) == 1
    assert_agreement(Case(data.replace(exif.tobytes()[6:14], b'garbage!'), data, True, []))


def test_packed_rows_inflate_to_the_same_pixels():
    """A file of which the checksum of the rows is missing is compressed again: with every filter and bit depth."""
    for mode in ('1', 'L', 'P', 'RGBA', 'I;16'):
        image = picture(200, 100).convert('I' if mode == 'I;16' else mode).convert(mode)
        image.paste(0 if mode != 'RGBA' else (0, 0, 0, 255), (0, 50, 200, 100))
        data = encode(image, 'PNG')
        assert np.array_equal(np.asarray(decode(data[:-20])), np.asarray(decode(data)))
        assert zlib.crc32(data[12:29]) == int.from_bytes(data[29:33], 'big')
