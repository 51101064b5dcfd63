"""Cost of an image: limits of memory and time, the process that enforces them, and the same pixels within them."""

import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import bombs
from benchmarks.bombs import BOMBS, jpeg, jpeg_scan, png, repeated, segment, tiff_strips
from benchmarks.decode_bombs import measure
from lib.dataset import decode as decode_module
from lib.dataset import decode_cost, decode_process, jpeg_file, lazy_image, upright_rgb
from lib.dataset.decode import DecodeError, decode, decode_pixels
from lib.dataset.decode_process import run_apart
from lib.dataset.lazy_image import open_lazy_image
from tests.dataset.decodings import end_by, fail, reversed_bytes, take_memory, take_time
from tests.dataset.layouts import encode
from tests.dataset.loading import files, train_loader, write_images

ROOT = Path(__file__).resolve().parents[2]
TOO_SLOW, TOO_LARGE = re.escape('takes more than 5 s to decode'), re.escape('needs more than 1 GB to decode')
TOO_MANY_PIXELS = r'.*178,000,000 (are|pixels that are) allowed'


@pytest.fixture
def fresh_decoder():
    """End the decoder processes of other tests, which have imported less."""
    decode_process._end_all()
    yield
    decode_process._end_all()


@pytest.mark.process
def test_a_process_is_kept_and_replaced_after_its_end(fresh_decoder, monkeypatch):
    pixels, first = run_apart(reversed_bytes, b'abc', 2)
    assert pixels.tobytes() == b'cbacba'
    assert pixels.shape == (2, 3)
    if sys.platform == 'linux':
        with pytest.raises(DecodeError, match=TOO_LARGE):
            run_apart(take_memory, b'')
    with pytest.raises(RuntimeError, match='a mistake in a decoder'):
        run_apart(fail, b'')
    assert run_apart(reversed_bytes, b'abc', 1)[1] == first
    os.kill(int(first), signal.SIGKILL)  # as the system does when memory is full
    assert run_apart(reversed_bytes, b'', 0)[1] != first
    with pytest.raises(DecodeError, match=r'^crashes its decoder \(SIGSEGV\)$'):
        run_apart(end_by, b'', int(signal.SIGSEGV))
    with pytest.raises(DecodeError, match=r'^its decoder was ended twice \(9\)$'):
        run_apart(end_by, b'', int(signal.SIGKILL))
    monkeypatch.setattr(decode_process, 'MAX_SECONDS', 0.2)
    with pytest.raises(DecodeError, match=TOO_SLOW):
        run_apart(take_time, b'')
    monkeypatch.setattr(decode_process, '_MAX_WALL_SECONDS', 3)
    monkeypatch.setattr(decode_process, 'MAX_SECONDS', 1e4)
    with pytest.raises(DecodeError, match=TOO_SLOW):
        run_apart(end_by, b'', 0)  # sleeps


@pytest.mark.process
def test_threads_have_processes_of_their_own(fresh_decoder):
    barrier = threading.Barrier(3)

    def work(number):
        barrier.wait(60)
        data = bytes([number]) * 1000
        return [run_apart(reversed_bytes, data, 300)[0].tobytes() == data * 300 for _ in range(5)]

    with ThreadPoolExecutor(3) as pool:
        assert all(map(all, pool.map(work, range(3))))
    assert 1 <= len(decode_process._idle) <= 3


@pytest.mark.process
def test_the_process_ends_with_its_parent():
    code = (
        'import os, signal; from lib.dataset.decode_process import run_apart\n'
        'from tests.dataset.decodings import reversed_bytes\n'
        "print(run_apart(reversed_bytes, b'', 0)[1], flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=False)
    deadline = time.monotonic() + 20
    while _runs(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(process: int) -> bool:
    try:
        return 'decode_process' in Path(f'/proc/{process}/cmdline').read_text()
    except OSError:
        return False


def picture(width=300, height=200):
    y, x = np.mgrid[0:height, 0:width]
    channels = [(x * 3) % 256, (y * 2 + x) % 256, (x * y) % 256]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES = {
    'JPEG': lambda: encode(picture(), 'JPEG', quality=90),
    'turned': lambda: encode(picture(), 'JPEG', exif=turned(6)),
    'progressive': lambda: encode(picture(), 'JPEG', progressive=True),
    'gray': lambda: encode(picture().convert('L'), 'JPEG', progressive=True),
    'CMYK': lambda: encode(picture().convert('CMYK'), 'JPEG'),
    'without end': lambda: encode(picture(), 'JPEG')[:-2],
    'PNG': lambda: encode(picture(), 'PNG'),
    'palette': lambda: encode(picture().quantize(16), 'PNG', transparency=3),
    'RGBA': lambda: encode(picture().convert('RGBA'), 'WEBP', lossless=True),
    'TIFF': lambda: encode(picture(), 'TIFF', compression='tiff_lzw', exif=turned(8)),
    'float': lambda: encode(picture().convert('F'), 'TIFF'),
}


@pytest.mark.process
@pytest.mark.parametrize('name', FILES)
def test_pixels_are_the_same_in_place_and_apart(name, monkeypatch):
    data = FILES[name]()
    lazy = open_lazy_image(data)
    expected = [
        decode_pixels(data),
        *(lazy.pixels(scale)[0] for scale in (1.0, 0.25)),
        lazy.gray_pixels(),
        lazy.warning,
    ]
    monkeypatch.setattr(decode_module, 'IN_PLACE_SECONDS', 0)
    monkeypatch.setattr(lazy_image, 'IN_PLACE_SECONDS', 0)
    monkeypatch.setattr(decode_module, 'opens_in_place', lambda data: False)
    monkeypatch.setattr(decode_process.np, 'empty', counted := Counted(np.empty))
    lazy = open_lazy_image(data)
    found = [decode_pixels(data), *(lazy.pixels(scale)[0] for scale in (1.0, 0.25)), lazy.gray_pixels(), lazy.warning]
    assert counted.calls > 0
    for one, other in zip(found[:-1], expected[:-1], strict=True):
        assert np.array_equal(one, other)
    assert found[-1] == expected[-1]
    assert np.array_equal(np.asarray(decode(data)), expected[0])


class Counted:
    """A function and the number of its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **options):
        self.calls += 1
        return self.function(*args, **options)


@pytest.mark.parametrize('size', [(1, 500), (500, 1), (37, 23)], ids=str)
@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'LA', 'PA', 'RGB', 'RGBA', 'CMYK', 'I', 'F', 'I;16', 'YCbCr', 'LAB'])
def test_conversion_in_parts_equals_that_of_the_whole(mode, size, monkeypatch):
    image = picture(*size)
    if mode == 'I;16':
        image = Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint16).reshape(size[::-1]) * 97)
    elif mode == 'P':
        image = image.quantize(8)
        image.info['transparency'] = 2
    elif mode == 'PA':
        image = image.convert('P').convert('PA')
    elif mode == 'LAB':
        image = Image.frombytes('LAB', size, image.tobytes())
    else:
        image = image.convert(mode)
    try:
        expected = np.asarray(upright_rgb.to_rgb(image))
    except ValueError:
        pytest.skip('Pillow does not convert this mode')
    monkeypatch.setattr(upright_rgb, '_PART_PIXELS', 100)
    converted = upright_rgb.to_rgb(image)
    assert np.array_equal(np.asarray(converted), expected)
    assert np.array_equal(upright_rgb.pixels_of(converted), expected)
    gray = np.asarray(Image.fromarray(expected).convert('L'))
    assert np.array_equal(upright_rgb.gray_of(expected), gray)


def test_blocks_of_a_jpeg():
    """Against libjpeg's rule, component by component: whole MCUs that cover the image (T.81, A.2.3)."""
    rng = random.Random(seed := random.randrange(2**32))
    print('seed', seed)
    for _ in range(200):
        width, height = rng.randint(1, 3000), rng.randint(1, 3000)
        factors = [(rng.randint(1, 4), rng.randint(1, 4)) for _ in range(rng.randint(1, 4))]
        across, down = max(h for h, _ in factors), max(v for _, v in factors)
        num_units, x = 0, 0
        while x < width:
            y = 0
            while y < height:
                num_units, y = num_units + 1, y + 8 * down
            x += 8 * across
        expected = [num_units * h * v for h, v in factors]
        assert decode_cost.jpeg_blocks(width, height, bytes(h << 4 | v for h, v in factors)) == expected


def test_restart_markers_are_found_as_before():
    rng = random.Random(seed := random.randrange(2**32))
    print('seed', seed)
    for _ in range(500):
        scan = bytes(rng.choice((0xFF, 0xFF, 0xD0, 0xD1, 0xD2, 0xD7, 0, 7)) for _ in range(rng.randint(0, 9)))
        numbers = [match[1][0] & 7 for match in re.finditer(rb'\xff([\xd0-\xd7])', scan)]
        assert jpeg_file._has_all_restarts(scan) == all(number == i & 7 for i, number in enumerate(numbers))
    assert jpeg_file._has_all_restarts(b''.join(bytes((1, 0xFF, 0xD0 + i % 8)) for i in range(50)))


def test_exif_of_several_segments_is_joined():
    extra = segment(0xE1, b'Exif\0\0II') + segment(0xE1, b'other') + segment(0xE1, b'Exif\0\0*\0')
    extra += segment(0xE1, jpeg_file._XMP + b'first') + segment(0xE1, jpeg_file._XMP + b'last')
    header = jpeg_file.read_header(jpeg(8, 8, 0xC0, jpeg_scan(b'\1', 0, 63, 0, b'\0'), extra=extra))
    assert header.metadata == {'exif': b'Exif\0\0II*\0', 'xmp': b'last'}


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('JPEG, 20,000 empty scans of 17 MP', TOO_SLOW),
        ('JPEG, 65,500 x 65,500', TOO_MANY_PIXELS),
        ('JPEG, 100,000 segments', 'more than 65,536 segments'),
        ('BMP, jumps over 255 rows of 100 MP', '100000000 x 1 pixels; at most 10,000,000 a side are allowed'),
        ('GIF, 65,535 x 65,535', TOO_MANY_PIXELS),
        ('GIF, a frame beyond its screen', TOO_MANY_PIXELS),
    ],
)
def test_bombs_that_the_header_gives_away(name, reason):
    data = BOMBS[name]()
    for use in (decode, lambda data: open_lazy_image(data).pixels(1.0)):
        with pytest.raises(DecodeError, match=f'^{reason}$'):
            use(data)


def test_a_few_scans_are_no_bomb():
    data = repeated(256, 1000)
    assert open_lazy_image(data).pixels(1.0)[0].shape == (256, 256, 3)


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_too_large_for_the_memory():
    side = 12_500  # 156 million pixels: 1.1 GB with the copy as an array
    for data in (tiff_strips(side, side, 1, side, bytes(100)), png(side, side, 8, 2, pixels=b'x')):
        with (
            Image.open(io.BytesIO(data)) as image,
            pytest.raises(DecodeError, match=r'^needs about 1\.1 GB to decode; '),
        ):
            decode_cost.check_memory(image, len(data))
    with Image.open(io.BytesIO(png(11_000, 11_000, 8, 2, pixels=b'x'))) as image:
        decode_cost.check_memory(image, 10**6)
        with pytest.raises(DecodeError, match=r'^needs about 1\.2 GB to decode; the limit is 1 GB$'):
            decode_cost.check_memory(image, 2 * 10**8)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize('name', BOMBS)
def test_all_bombs(name):
    data = BOMBS[name]()
    for use in ('train', 'pack'):
        found = measure(data, use)
        print(name, use, found)
        assert not found['outcome'].startswith('FAILED')
        assert found['megabytes'] <= 1000
        assert found['cpu_seconds'] <= 4 * decode_cost.MAX_SECONDS
        if 'honest' in name:
            assert re.fullmatch(r'\d+ x \d+', found['outcome'])


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize('workers', [0, 2])
def test_training_replaces_a_bomb_and_continues(tmp_path, workers):
    write_images(tmp_path)
    (tmp_path / '5.png').write_bytes(repeated(4096, 1000, refining=True))
    (tmp_path / '9.png').write_bytes(encode(picture(), 'JPEG2000'))  # decoded in such a process, too
    loader = train_loader(files(tmp_path), num_workers=workers)
    batches = [batch for epoch in range(1, 6) for batch in loader.batches(epoch)]
    bad = {row: reason for batch in batches for row, reason in batch.bad}
    assert bad == {5: 'takes more than 5 s to decode'}
    assert all(bool(batch.readable.all()) for batch in batches)
    with pytest.raises(DecodeError, match=TOO_SLOW):
        files(tmp_path).load(5)


@pytest.mark.slow
@pytest.mark.process
def test_honest_photos_have_the_pixels_of_plain_decoders():
    import simplejpeg

    photo = encode(bombs.noise(8000, 6000), 'JPEG', quality=90, progressive=True)
    assert np.array_equal(open_lazy_image(photo).pixels(1.0)[0], simplejpeg.decode_jpeg(photo, 'RGB'))
    with Image.open(io.BytesIO(photo)) as image:
        expected = np.asarray(image)
    assert np.array_equal(decode_pixels(photo), expected)
    scan = bombs.png16(6000, 4000)
    with Image.open(io.BytesIO(scan)) as image:
        assert np.array_equal(decode_pixels(scan), np.asarray(image))
