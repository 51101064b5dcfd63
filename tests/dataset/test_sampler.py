"""Samplers: hand-written tables, the distribution of draws, purity."""

import numpy as np
import pytest
from scipy import stats

from lib.builders.sampler import SAMPLERS
from lib.dataset.index import ClassIndex
from lib.dataset.sampler import (
    Sampler,
    SwitchingSampler,
    class_balance,
    instance_balance,
    progressive,
    reverse,
    square_root,
)

COUNTS = np.array([400, 100, 0, 25, 4, 1, 0])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(7), COUNTS)).astype(np.int32)
INDEX = ClassIndex(LABELS, len(COUNTS))


@pytest.mark.parametrize(
    ('weights', 'progress', 'expected'),
    [
        (instance_balance, 0.3, [6, 2, 0, 1]),
        (class_balance, 0.3, [1, 1, 0, 1]),
        (reverse, 0.3, [1, 3, 0, 6]),
        (square_root, 0.3, [6**0.5, 2**0.5, 0, 1]),
        (progressive, 0.0, [6 / 9, 2 / 9, 0, 1 / 9]),
        (progressive, 0.5, [1 / 2, 5 / 18, 0, 2 / 9]),
        (progressive, 1.0, [1 / 3, 1 / 3, 0, 1 / 3]),
    ],
)
def test_weights_of_a_tiny_case(weights, progress, expected):
    counts = np.array([6, 2, 0, 1])
    found = weights(counts, progress)
    # Only proportions matter: the sampler normalizes.
    np.testing.assert_allclose(found / found.sum(), np.array(expected) / sum(expected), rtol=1e-12)
    assert counts.tolist() == [6, 2, 0, 1]


@pytest.mark.parametrize('name', SAMPLERS)
def test_an_epoch_has_as_many_rows_as_the_index_and_only_those(name):
    index = INDEX.capped(30, 0)
    rows = Sampler(SAMPLERS[name], index, seed=1, max_epoch=3).epoch_rows(0)
    assert rows.shape == (len(index),)
    assert rows.dtype == np.int64
    assert set(rows.tolist()) <= set(index.rows.tolist())


@pytest.mark.parametrize('epoch', range(3))
def test_instance_balance_draws_each_image_once(epoch):
    rows = Sampler(instance_balance, INDEX, seed=1, max_epoch=3).epoch_rows(epoch)
    assert sorted(rows.tolist()) == list(range(len(LABELS)))


@pytest.mark.parametrize('name', SAMPLERS)
def test_epoch_rows_is_a_pure_function_of_seed_and_epoch(name):
    def rows_of(seed, epoch):
        return Sampler(SAMPLERS[name], INDEX, seed, max_epoch=5).epoch_rows(epoch).tolist()

    np.random.seed(3)  # noqa: NPY002 - the global generator must not matter
    first = rows_of(7, 2)
    np.random.seed(4)  # noqa: NPY002
    sampler = Sampler(SAMPLERS[name], INDEX, 7, max_epoch=5)
    for epoch in (0, 4, 2):
        last = sampler.epoch_rows(epoch).tolist()
    assert first == last
    assert rows_of(8, 2) != first
    assert rows_of(7, 3) != first


@pytest.mark.parametrize('progress', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('name', SAMPLERS)
def test_classes_are_drawn_by_their_probabilities(name, progress):
    """Chi-square over 40 epochs; fixed seeds, so it either always passes or never."""
    max_epoch = 10_001
    first = int(progress * (max_epoch - 1))
    sampler = Sampler(SAMPLERS[name], INDEX, seed=11, max_epoch=max_epoch)
    epochs = range(max(0, first - 39), max(0, first - 39) + 40)
    drawn = sum(np.bincount(LABELS[sampler.epoch_rows(epoch)], minlength=7) for epoch in epochs)
    weights = SAMPLERS[name](COUNTS, progress)
    expected = weights / weights.sum() * drawn.sum()
    assert drawn[COUNTS == 0].tolist() == [0, 0]
    seen = COUNTS > 0
    if name == 'instance_balance':
        assert drawn.tolist() == (40 * COUNTS).tolist()
        return
    result = stats.chisquare(drawn[seen], expected[seen] * drawn.sum() / expected[seen].sum())
    assert result.pvalue > 1e-3, (name, progress, drawn, expected)


@pytest.mark.parametrize('name', [name for name in SAMPLERS if name != 'instance_balance'])
def test_images_of_a_class_are_drawn_uniformly(name):
    sampler = Sampler(SAMPLERS[name], INDEX, seed=5, max_epoch=1)
    rows = np.concatenate([sampler.epoch_rows(epoch) for epoch in range(60)])
    for label in (0, 1, 3, 4):
        times = np.bincount(rows, minlength=len(LABELS))[INDEX.rows_of(label)]
        if times.mean() >= 5:
            assert stats.chisquare(times).pvalue > 1e-3, (name, label)


@pytest.mark.parametrize('name', SAMPLERS)
@pytest.mark.parametrize('empty', [[0], [6], [0, 1, 5, 6], [2, 3, 4]])
def test_empty_classes_are_never_drawn(name, empty):
    counts = np.where(np.isin(np.arange(7), empty), 0, 3)
    labels = np.repeat(np.arange(7), counts)
    index = ClassIndex(labels, 7)
    sampler = Sampler(SAMPLERS[name], index, seed=0, max_epoch=20)
    drawn = np.unique(labels[np.concatenate([sampler.epoch_rows(epoch) for epoch in range(20)])])
    assert drawn.tolist() == [label for label in range(7) if label not in empty]


@pytest.mark.parametrize('name', SAMPLERS)
def test_one_image(name):
    index = ClassIndex(np.array([2], np.int32), 4)
    assert Sampler(SAMPLERS[name], index, seed=0, max_epoch=1).epoch_rows(0).tolist() == [0]


def rows_at(weights, epoch, max_epoch):
    return Sampler(weights, INDEX, seed=9, max_epoch=max_epoch).epoch_rows(epoch).tolist()


def test_progressive_ends_as_class_balance():
    """In the last epoch and later (a longer run) it equals class balance, drawn by the same random numbers."""
    for epoch in (9, 15):
        assert rows_at(progressive, epoch, 10) == rows_at(class_balance, epoch, 10)


def test_progressive_starts_with_the_distribution_of_instance_balance():
    drawn = np.bincount(LABELS[rows_at(progressive, 0, 10)], minlength=7)
    expected = COUNTS[COUNTS > 0]  # independent draws, unlike instance_balance itself
    assert stats.chisquare(drawn[COUNTS > 0], expected).pvalue > 1e-3
    assert rows_at(progressive, 0, 1) == rows_at(progressive, 0, 10)


def test_the_switch_happens_at_its_epoch_and_is_permanent():
    first = Sampler(instance_balance, INDEX, seed=2, max_epoch=6)
    second = Sampler(class_balance, INDEX, seed=2, max_epoch=6)
    switching = SwitchingSampler(first, second, switch_epoch=3)
    for epoch in (5, 0, 3, 2, 4):  # a resumed run may ask for any epoch first
        expected = second if epoch >= 3 else first
        assert switching.epoch_rows(epoch).tolist() == expected.epoch_rows(epoch).tolist(), epoch


def test_a_switch_at_0_is_the_second_sampler():
    second = Sampler(reverse, INDEX, seed=2, max_epoch=6)
    switching = SwitchingSampler(Sampler(instance_balance, INDEX, 2, 6), second, switch_epoch=0)
    assert switching.epoch_rows(0).tolist() == second.epoch_rows(0).tolist()


@pytest.mark.parametrize('name', SAMPLERS)
def test_the_index_is_not_modified(name):
    index = ClassIndex(LABELS.copy(), 7)
    Sampler(SAMPLERS[name], index, seed=0, max_epoch=2).epoch_rows(1)
    assert index.labels.tolist() == LABELS.tolist()
    assert index.rows.tolist() == list(range(len(LABELS)))
    assert index.class_counts.tolist() == COUNTS.tolist()
