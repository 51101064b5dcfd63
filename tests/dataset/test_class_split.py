"""Random samples of a class, and validation splits of converted sources without one."""

from collections import Counter

import numpy as np
import pytest

from lib.dataset.folder import sample_indices, sample_valid_indices
from lib.errors import UserError
from lib.formats.converted import ConvertedDataset, ConvertedSplit, with_validation


@pytest.mark.parametrize(
    ('num_images', 'fraction', 'number'),
    [(0, 0.1, 0), (1, 0.9, 0), (2, 0.1, 1), (2, 0.9, 1), (10, 0.0, 0), (10, 0.1, 1), (10, 0.9, 9), (25, 0.1, 2)],
)
def test_the_number_of_validation_images(num_images, fraction, number):
    indices = sample_valid_indices(num_images, 'tea', fraction, seed=0)
    assert len(indices) == number
    assert sorted(set(indices.tolist())) == indices.tolist()
    assert all(0 <= index < num_images for index in indices)


def test_the_sample_depends_on_seed_and_name():
    assert np.array_equal(sample_valid_indices(50, 'tea', 0.2, 1), sample_valid_indices(50, 'tea', 0.2, 1))
    assert not np.array_equal(sample_valid_indices(50, 'tea', 0.2, 1), sample_valid_indices(50, 'tea', 0.2, 2))
    assert not np.array_equal(sample_valid_indices(50, 'tea', 0.2, 1), sample_valid_indices(50, 'cola', 0.2, 1))


def converted(tmp_path, **more):
    """Return twelve colas, five teas and one milk in mixed order."""
    labels = np.array([0, 1, 0, 0, 2, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0], np.int32)
    paths = [f'{row}.jpg' for row in range(len(labels))]
    return ConvertedDataset({'train': ConvertedSplit(paths, labels), **more}, ['cola', 'tea', 'milk'], None, tmp_path)


def test_converted_source(tmp_path):
    before = converted(tmp_path, test=ConvertedSplit(['x.jpg'], None))
    after = with_validation(before, fraction=0.25, seed=3)
    assert len(before.splits['train']) == 18  # nothing changes its input
    train, valid = after.splits['train'], after.splits['val']
    assert Counter(label for _, label in valid) == {0: 3, 1: 1}
    assert sorted([*train, *valid]) == sorted(before.splits['train'])
    assert train.paths == sorted(train.paths, key=before.splits['train'].paths.index)
    assert after.splits['test'].paths == ['x.jpg']
    cola = [path for path, label in before.splits['train'] if label == 0]
    assert [path for path, label in valid if label == 0] == [
        cola[index] for index in sample_valid_indices(12, 'cola', 0.25, 3)
    ]


def test_sources_that_cannot_be_split(tmp_path):
    whole = converted(tmp_path)
    val = ConvertedSplit(['x.jpg'], np.zeros(1, np.int32))
    with pytest.raises(UserError, match='has a validation split'):
        with_validation(converted(tmp_path, val=val), fraction=0.1, seed=0)
    only_test = ConvertedDataset({'test': whole.splits['train']}, whole.names, None, tmp_path)
    with pytest.raises(UserError, match='SOURCE has none'):
        with_validation(only_test, fraction=0.1, seed=0)
    train = ConvertedSplit(['a', 'b'], np.arange(2, dtype=np.int32))
    single = ConvertedDataset({'train': train}, ['x', 'y'], None, tmp_path)
    with pytest.raises(UserError, match='only 1 image'):
        with_validation(single, fraction=0.5, seed=0)


@pytest.mark.parametrize(('num_images', 'number', 'expected'), [(0, 3, 0), (2, 3, 2), (9, 3, 3), (9, 9, 9)])
def test_sample_indices(num_images, number, expected):
    indices = sample_indices(num_images, 'tea', number, seed=0)
    assert len(set(indices.tolist())) == expected
    assert sorted(indices.tolist()) == indices.tolist()
    assert all(0 <= index < num_images for index in indices)
    assert np.array_equal(indices, sample_indices(num_images, 'tea', number, seed=0))
    others = {tuple(sample_indices(50, name, 3, seed)) for name in ('tea', 'jam') for seed in range(5)}
    assert len(others) == 10
