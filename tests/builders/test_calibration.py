"""The balanced sample of calibration images."""

import numpy as np
import pytest

from lib.builders.calibration import balanced_rows


@pytest.mark.parametrize('seed', range(4))
def test_classes_have_equal_numbers_as_far_as_they_have_images(seed):
    print(f'seed {seed}')
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 40, 12)
    labels = random.permutation(np.repeat(np.arange(12), sizes))
    for number in (1, 5, 30, 100, 1000):
        rows = balanced_rows(labels, number, seed=seed)
        assert len(set(rows.tolist())) == len(rows) == min(number, len(labels))
        counts = np.bincount(labels[rows], minlength=12)
        for label in range(12):  # a class with fewer than another by two or more has no further images
            assert counts[label] >= min(sizes[label], counts.max() - 1)
    np.testing.assert_array_equal(balanced_rows(labels, 20, seed=1), balanced_rows(labels, 20, seed=1))
    assert (balanced_rows(labels, 20, seed=1) != balanced_rows(labels, 20, seed=2)).any()


def test_only_the_given_rows_are_drawn():
    labels = np.array([0, 0, 1, 1, 2])
    assert sorted(balanced_rows(labels, 9, seed=0, rows=np.array([1, 2, 4]))) == [1, 2, 4]
