"""DATASET.IMBALANCE_IMAGES: which set of CIFAR-LT a config gets."""

import numpy as np
import pytest

from lib.builders.data import open_training_data
from lib.config.load import load_config
from tests.oracles import cifar_lt as oracle
from tests.small_cifar import torchvision_checksums, write_small_cifar


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Return a function from options to the training split."""
    from torchvision import datasets

    write_small_cifar(tmp_path)
    for name, value in torchvision_checksums(tmp_path).items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)

    def open_split(ratio, *options):
        data = ('--DATASET_NAME', 'cifar10_lt', '--DATASET_ROOT', tmp_path, '--DATASET_IMBALANCE_RATIO', ratio)
        argv = [str(word) for word in (*data, *options)]
        loaded = load_config(argv, program='', description='', find_checkpoint_config=lambda *_: None)
        return open_training_data(loaded.cfg).train

    return open_split


def test_the_published_set_is_the_same_for_every_seed(train):
    first, other = (train(10, '--SEED', seed) for seed in (0, 1))
    assert np.array_equal(first.images.images, other.images.images)
    assert first.digest() == other.digest()
    everything = train(1)
    rows = sorted(oracle.published_rows(everything.labels.tolist(), 10, 'exp', 10))
    assert np.array_equal(first.images.images, everything.images.images[rows])


def test_by_seed_is_another_set_for_each(train):
    options = ('--DATASET_IMBALANCE_IMAGES', 'by_seed', '--SEED')
    first, again, other = (train(10, *options, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.images.images, again.images.images)
    assert not np.array_equal(first.images.images, other.images.images)
    assert not np.array_equal(first.images.images, train(10).images.images)
