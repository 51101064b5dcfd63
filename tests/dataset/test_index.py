"""The class index, compared with obvious loops."""

import numpy as np
import pytest

from lib.dataset.index import ClassIndex


def random_labels(seed, num_images=200, num_classes=12):
    random = np.random.default_rng(seed)
    return np.minimum(random.geometric(0.3, num_images) - 1, num_classes - 3).astype(np.int32), num_classes


@pytest.mark.parametrize('seed', range(5))
def test_rows_of_each_class(seed):
    labels, num_classes = random_labels(seed)
    index = ClassIndex(labels, num_classes)
    assert len(index) == len(labels)
    for label in range(num_classes):
        rows = [row for row, row_label in enumerate(labels) if row_label == label]
        assert index.rows_of(label).tolist() == rows
        assert index.class_counts[label] == len(rows)
    assert index.class_counts.dtype == np.int64
    assert index.starts.tolist() == [sum(index.class_counts[:label]) for label in range(num_classes + 1)]
    assert sorted(index.by_class.tolist()) == list(range(len(labels)))


@pytest.mark.parametrize('seed', range(5))
def test_selected_rows(seed):
    labels, num_classes = random_labels(seed)
    selected = np.flatnonzero(np.random.default_rng(seed).random(len(labels)) < 0.5)
    index = ClassIndex(labels, num_classes, selected)
    assert len(index) == len(selected)
    for label in range(num_classes):
        assert index.rows_of(label).tolist() == [row for row in selected.tolist() if labels[row] == label]


@pytest.mark.parametrize('cap', [1, 5, 30])
@pytest.mark.parametrize('seed', range(3))
def test_cap(seed, cap):
    labels, num_classes = random_labels(seed)
    whole = ClassIndex(labels, num_classes)
    capped = whole.capped(cap, seed)
    assert capped.class_counts.tolist() == np.minimum(whole.class_counts, cap).tolist()
    assert capped.rows.tolist() == sorted(set(capped.rows.tolist()))
    for label in range(num_classes):
        assert set(capped.rows_of(label)) <= set(whole.rows_of(label))
        if whole.class_counts[label] <= cap:
            assert capped.rows_of(label).tolist() == whole.rows_of(label).tolist()
    assert capped.rows.tolist() == whole.capped(cap, seed).rows.tolist()
    assert len(whole) == len(labels), 'the original index is unchanged'


def test_the_cap_depends_on_the_seed():
    index = ClassIndex(np.zeros(100, np.int32), 1)
    subsets = {tuple(index.capped(50, seed).rows.tolist()) for seed in range(5)}
    assert len(subsets) == 5


def test_every_image_has_the_same_probability():
    """20 of 40 images are selected with 400 seeds: each one about 200 times (standard deviation 10)."""
    index = ClassIndex(np.repeat([0, 1], [40, 5]).astype(np.int32), 2)
    times = np.bincount(np.concatenate([index.capped(20, seed).rows for seed in range(400)]), minlength=45)
    assert times[40:].tolist() == [400] * 5
    assert (abs(times[:40] - 200) < 45).all(), times


def test_no_cap_and_a_wide_cap_change_nothing():
    labels, num_classes = random_labels(0)
    index = ClassIndex(labels, num_classes)
    assert index.capped(0, 1) is index
    assert index.capped(1000, 1) is index


def test_a_cap_of_a_cap():
    labels, num_classes = random_labels(1)
    once = ClassIndex(labels, num_classes).capped(20, 3)
    twice = once.capped(5, 3)
    assert set(twice.rows.tolist()) <= set(once.rows.tolist())
    assert twice.class_counts.tolist() == np.minimum(once.class_counts, 5).tolist()


def test_an_empty_split():
    index = ClassIndex(np.zeros(0, np.int32), 3)
    assert (len(index), index.class_counts.tolist(), index.rows_of(1).tolist()) == (0, [0, 0, 0], [])
    assert index.capped(2, 0) is index
