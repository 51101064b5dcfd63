"""Cached images: reduced, the same in every worker, damaged ones as without a cache, memory checked first."""

import numpy as np
import pytest
import torch
from PIL import Image

from lib.dataset import ram_cache
from lib.dataset.decode import DecodeError
from lib.dataset.images import FileImages
from lib.dataset.index import ClassIndex
from lib.dataset.loader import TrainLoader
from lib.dataset.normalize import Normalize
from lib.dataset.ram_cache import CachedImages
from lib.dataset.reader import BatchReader
from lib.dataset.sampler import Sampler, class_balance
from lib.dataset.transforms import RandomResizedCrop
from lib.runtime.shared_memory import SharedMemoryFull

SIZES = [(40, 30), (30, 60), (20, 20), (64, 16), (100, 100), (25, 50)]
LABELS = np.array([0, 0, 0, 1, 1, 1], np.int32)


@pytest.fixture
def images(tmp_path):
    for row, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(row).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'{row}.png')
    return FileImages([f'{row}.png' for row in range(len(SIZES))], str(tmp_path))


def cached(images, short_side=24):
    return CachedImages(images, short_side, label='train', num_threads=2)


def test_the_short_side_is_reduced_and_never_enlarged(images):
    cache = cached(images)
    assert len(cache) == 6
    assert cache.name(2) == images.name(2)
    sizes = [(cache.open(row).width, cache.open(row).height) for row in range(6)]
    assert sizes == [(32, 24), (24, 48), (20, 20), (64, 16), (24, 24), (24, 48)]
    for row in (2, 3):
        assert np.array_equal(cache.open(row).pixels(1.0)[0], images.open(row).pixels(1.0)[0])
    expected = Image.open(images.name(4)).resize((24, 24), Image.Resampling.BILINEAR)
    assert np.abs(cache.open(4).pixels(1.0)[0].astype(int) - np.asarray(expected)).max() <= 2
    assert cache.load(4).size == (100, 100)


def test_damaged_and_missing_images_raise_on_access(images, tmp_path):
    (tmp_path / '1.png').write_bytes(b'no image')
    (tmp_path / '3.png').unlink()
    cache = cached(images)
    assert cache.open(0).width == 32
    with pytest.raises(DecodeError):
        cache.open(1)
    with pytest.raises(FileNotFoundError):
        cache.open(3)


@pytest.mark.process
def test_workers_read_the_same_pixels(images, tmp_path):
    cache = cached(images)
    for row in range(6):
        (tmp_path / f'{row}.png').unlink()  # the files are not read again

    def batches(num_workers):
        index = ClassIndex(LABELS, 2)
        reader = BatchReader(cache, LABELS, RandomResizedCrop(16), 0, 'replace', index)
        loader = TrainLoader(
            reader,
            Sampler(class_balance, index, 0, 2),
            6,
            3,
            device=torch.device('cpu'),
            normalize=Normalize(),
            num_workers=num_workers,
        )
        return torch.cat([batch.images for batch in loader.batches(0)])

    assert torch.equal(batches(0), batches(2))


def test_too_little_memory_is_reported_before_decoding(images, monkeypatch):
    monkeypatch.setattr(ram_cache, 'free_shared_bytes', lambda: 1000)
    monkeypatch.setattr(ram_cache, 'crop_resize', lambda *_: pytest.fail('an image was decoded'))
    with pytest.raises(SharedMemoryFull, match=r'train takes 0\.0 GB of shared memory, and 0\.0 GB are free'):
        cached(images)
