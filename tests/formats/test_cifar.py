import hashlib

import numpy as np
import pytest
import torch  # noqa: F401  its first import starts a process, which a test may not

from lib.errors import UserError
from lib.formats.cifar import class_sizes, load_cifar_lt, published_rows
from tests.oracles import cifar_lt as oracle
from tests.small_cifar import torchvision_checksums, write_small_cifar


@pytest.mark.parametrize(
    ('num_images', 'num_classes', 'ratio', 'total'),
    [(5000, 10, 100, 12_406), (500, 100, 100, 10_847), (5000, 10, 1, 50_000), (500, 100, 1, 50_000)],
)
def test_published_totals(num_images, num_classes, ratio, total):
    sizes = class_sizes(num_images, num_classes, 'exp', ratio)
    assert sizes.sum() == total
    assert (sizes[0], sizes[-1]) == (num_images, num_images // ratio)
    assert (np.diff(sizes) <= 0).all()


def test_sizes_against_the_formula():
    for ratio in (10, 50, 100, 200):
        expected = [int(5000 * ratio ** (-c / 9) + 1e-6) for c in range(10)]
        assert class_sizes(5000, 10, 'exp', ratio).tolist() == expected
    assert class_sizes(500, 5, 'step', 100).tolist() == [500, 500, 5, 5, 5]
    assert class_sizes(5, 4, 'exp', 1000).min() == 1


@pytest.mark.parametrize('kind', ['exp', 'step'])
@pytest.mark.parametrize('ratio', [10, 100, *(pytest.param(ratio, marks=pytest.mark.slow) for ratio in (20, 50, 200))])
@pytest.mark.parametrize('num_classes', [10, 100])
@pytest.mark.long
def test_published_rows_equal_those_of_the_oracle(num_classes, ratio, kind):
    labels = oracle.random_labels(50_000, num_classes, seed=ratio)
    sizes = class_sizes(50_000 // num_classes, num_classes, kind, ratio)
    rows = published_rows(np.array(labels, np.int32), sizes)
    assert rows.tolist() == sorted(oracle.published_rows(labels, num_classes, kind, ratio))
    assert np.bincount(np.array(labels)[rows]).tolist() == sizes.tolist()


@pytest.mark.parametrize(
    ('num_classes', 'total', 'digest'),
    [(10, 12_406, 'e1e05ffa1e637d93'), (100, 10_847, '82ee4efff55d0e5c')],
)
def test_published_rows_do_not_change(num_classes, total, digest):
    """Labels 0, 1, 2, ..., 0, 1, 2, ...: every version of NumPy must give the same rows."""
    labels = np.arange(50_000) % num_classes
    rows = published_rows(labels, class_sizes(50_000 // num_classes, num_classes, 'exp', 100))
    assert len(rows) == total
    assert hashlib.sha256(rows.astype('<i8').tobytes()).hexdigest()[:16] == digest


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    from torchvision import datasets

    write_small_cifar(tmp_path)
    for name, value in torchvision_checksums(tmp_path).items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    return tmp_path


def load(root, seed=0, kind='exp', ratio=10.0):
    return load_cifar_lt(root, 'cifar10_lt', imbalance_type=kind, imbalance_ratio=ratio, seed=seed)


@pytest.mark.parametrize('kind', ['exp', 'step'])
def test_reader_on_a_small_archive(small_cifar, kind):
    images, labels, valid_images, valid_labels, names = load(small_cifar, kind=kind)
    assert np.bincount(labels).tolist() == class_sizes(20, 10, kind, 10).tolist()
    assert images.shape == (len(labels), 32, 32, 3)
    assert images.dtype == valid_images.dtype == np.uint8
    assert labels.dtype == valid_labels.dtype == np.int32
    assert (images[:, 0, 0, 0] == labels).all()
    assert (valid_images[:, 0, 0, 0] == valid_labels).all()
    assert np.bincount(valid_labels).tolist() == [4] * 10
    assert names[3] == 'class 3'


def test_the_images_depend_on_the_seed(small_cifar):
    first, again, other = (load(small_cifar, seed=seed)[0] for seed in (0, 0, 1))
    assert (first == again).all()
    assert not (first == other).all()


@pytest.mark.parametrize('kind', ['exp', 'step'])
def test_without_a_seed_the_published_images_are_read_in_order(small_cifar, kind):
    everything = load(small_cifar, ratio=1.0)
    rows = sorted(oracle.published_rows(everything[1].tolist(), 10, kind, 10))
    images, labels, valid_images, *_ = load(small_cifar, seed=None, kind=kind)
    assert (images == everything[0][rows]).all()
    assert (labels == everything[1][rows]).all()
    assert (valid_images == everything[2]).all()


def test_errors_name_the_source_of_missing_and_damaged_files(small_cifar, tmp_path):
    with pytest.raises(UserError, match=r'is missing; put https://.*cifar-10-python.tar.gz into'):
        load(tmp_path / 'elsewhere')
    load(small_cifar)
    batch = small_cifar / 'cifar-10-batches-py' / 'data_batch_2'
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(UserError, match='is damaged or incomplete'):
        load(small_cifar)
