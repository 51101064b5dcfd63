"""The most confused pairs of classes against a plain loop."""

from collections import Counter

import numpy as np
import pytest

from lib.metrics.confusion import most_confused


def obvious_pairs(labels, predicted):
    """Return every wrong pair in the documented order, and the counts, by a plain loop."""
    wrong = Counter((a, b) for a, b in zip(labels, predicted, strict=True) if a != b and b >= 0)
    images = Counter(labels)
    return sorted(wrong, key=lambda pair: (-wrong[pair], -wrong[pair] / images[pair[0]], pair)), wrong, images


@pytest.mark.parametrize('seed', range(20))
def test_agrees_with_an_obvious_loop(seed):
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(2, 9))
    labels = rng.integers(0, num_classes, 120).astype(np.int32)
    predicted = rng.integers(-1, num_classes, 120).astype(np.int64)
    order, wrong, images = obvious_pairs(labels.tolist(), predicted.tolist())
    found = most_confused(labels, predicted, limit=1000)
    assert [(pair.label, pair.predicted) for pair in found] == order
    for pair in found:
        key = (pair.label, pair.predicted)
        assert pair.rows.tolist() == np.flatnonzero((labels == key[0]) & (predicted == key[1])).tolist()
        assert pair.num_images == images[key[0]]
        assert pair.fraction == wrong[key] / images[key[0]]
        assert pair.num_reverse == wrong[key[::-1]]


def test_limit_and_nothing_to_show():
    labels = np.array([0, 0, 1, 1, 2])
    assert len(most_confused(labels, np.array([1, 2, 0, 2, 0]), limit=2)) == 2
    assert most_confused(labels, labels) == []
    assert most_confused(labels, np.full(5, -1)) == []
    assert most_confused(np.zeros(0, np.int64), np.zeros(0, np.int64)) == []


def test_millions_of_classes_do_not_overflow_or_need_a_matrix():
    top = 10_000_000 - 1
    (pair,) = most_confused(np.array([top, 3], np.int32), np.array([top - 1, 3], np.int32))
    assert (pair.label, pair.predicted, pair.num_reverse) == (top, top - 1, 0)
