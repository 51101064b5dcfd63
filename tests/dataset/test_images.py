"""Image sources: repeated reads of a flaky disk, and images by row."""

import os
import pickle

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lib.dataset import images
from lib.dataset.images import ArrayImages, FileImages, read_bytes
from lib.runtime import read_file


class FlakyDisk:
    """A `read_file.read_bytes` whose first calls fail."""

    def __init__(self, failures, error):
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self, path, *, max_bytes):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return b'content'


@pytest.fixture
def pauses(monkeypatch):
    seconds = []
    monkeypatch.setattr(images.time, 'sleep', seconds.append)
    return seconds


def test_two_failed_reads_are_repeated(monkeypatch, pauses):
    monkeypatch.setattr(read_file, 'read_bytes', FlakyDisk(2, OSError(5, 'Input/output error')))
    assert read_bytes('x.jpg') == b'content'
    assert len(pauses) == 2
    assert pauses[0] < pauses[1] < 1


def test_the_third_failed_read_raises(monkeypatch, pauses):
    disk = FlakyDisk(9, OSError(5, 'Input/output error'))
    monkeypatch.setattr(read_file, 'read_bytes', disk)
    with pytest.raises(OSError, match='Input/output'):
        read_bytes('x.jpg')
    assert (disk.calls, len(pauses)) == (3, 2)


PERMANENT = [FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, read_file.RefusedFileError]


@pytest.mark.parametrize('error', PERMANENT, ids=repr)
def test_permanent_failures_are_not_repeated(monkeypatch, pauses, error):
    disk = FlakyDisk(1, error())
    monkeypatch.setattr(read_file, 'read_bytes', disk)
    with pytest.raises(error):
        read_bytes('x.jpg')
    assert (disk.calls, pauses) == (1, [])


@pytest.mark.parametrize(
    'make', [list, lambda paths: pa.array(paths, pa.large_string()), lambda paths: pa.array(paths)]
)
def test_file_images(tmp_path, make):
    paths = ['a/red.png', 'a/blue.png']
    (tmp_path / 'a').mkdir()
    for path, color in zip(paths, ('red', 'blue'), strict=True):
        Image.new('RGB', (4, 3), color).save(tmp_path / path)
    files = pickle.loads(pickle.dumps(FileImages(make(paths), str(tmp_path))))
    assert len(files) == 2
    assert files.name(1) == os.path.join(str(tmp_path), 'a/blue.png')
    assert files.load(np.int64(0)).getpixel((0, 0)) == (255, 0, 0)
    assert files.load(1).getpixel((3, 2)) == (0, 0, 255)
    assert files.open(1).pixels(1.0)[0][2, 3].tolist() == [0, 0, 255]
    assert FileImages(make([str(tmp_path / paths[0])]), '/elsewhere').load(0).size == (4, 3)
    with pytest.raises(FileNotFoundError, match=r'absent\.png'):
        FileImages(make(['absent.png']), str(tmp_path)).load(0)


def test_array_images():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    array = pickle.loads(pickle.dumps(ArrayImages(pixels)))
    assert len(array) == 3
    assert array.load(np.int64(2)).mode == 'RGB'
    assert np.array_equal(np.asarray(array.load(2)), pixels[2])
    assert np.array_equal(array.open(2).pixels(1.0)[0], pixels[2])
    assert '2' in array.name(2)


@pytest.mark.parametrize('bad', [np.zeros((2, 4, 4, 3)), np.zeros((2, 3, 4, 4), np.uint8)])
def test_other_arrays_are_rejected(bad):
    with pytest.raises(ValueError, match='uint8'):
        ArrayImages(bad)
