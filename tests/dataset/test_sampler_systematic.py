"""Repeat factors, effective numbers and class batches, compared with probabilities and loops computed here."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from lib.builders.sampler import build_sampler
from lib.config.load import load_config
from lib.dataset.index import ClassIndex
from lib.dataset.sampler import ClassBatches, Sampler, _interval_of, effective_number, instance_balance, repeat_factor
from lib.errors import UserError

COUNTS = [400, 100, 0, 25, 4, 1, 0]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(7), COUNTS)).astype(np.int32)
INDEX = ClassIndex(LABELS, len(COUNTS))


def built(index, **options):
    """Build the sampler of SAMPLER.* options."""
    options = {'SAMPLER_SWITCH_TYPE': '', 'SAMPLER_SWITCH_EPOCH': 0, **options}
    argv = [word for name, value in options.items() for word in (f'--{name}', str(value))]
    loaded = load_config(argv, program='main.py', description='', find_checkpoint_config=lambda *_: None)
    return build_sampler(loaded.cfg, index)


def test_effective_number_of_a_tiny_case():
    expected = [n * (1 - 0.9) / (1 - 0.9**n) if n else 0 for n in (6, 2, 0, 1)]
    np.testing.assert_allclose(effective_number(np.array([6, 2, 0, 1]), 0.0, beta=0.9), expected, rtol=1e-12)


def test_effective_number_at_its_limits():
    counts = np.array([8000, 5, 0, 1])
    assert effective_number(counts, 0.0, beta=0.0).tolist() == [8000, 5, 0, 1]
    np.testing.assert_allclose(effective_number(counts, 0.0, beta=1 - 1e-12), [1, 1, 0, 1], rtol=1e-6)


def test_repeat_factor_of_a_tiny_case():
    counts = [900, 90, 0, 10]
    expected = [n * max(1.0, math.sqrt(0.1 / (n / 1000))) if n else 0 for n in counts]
    assert expected[:2] == [900, 90 * math.sqrt(0.1 / 0.09)]
    np.testing.assert_allclose(repeat_factor(np.array(counts), 0.0, threshold=0.1), expected, rtol=1e-12)
    assert repeat_factor(np.array(counts), 0.0, threshold=0.0).tolist() == counts


def expected_times(threshold):
    """Return the expected number of draws of an image of each class per epoch, by LVIS's formula."""
    total = sum(COUNTS)
    factors = [max(1.0, math.sqrt(threshold * total / n)) if n else 0.0 for n in COUNTS]
    return np.array(factors) * total / sum(n * r for n, r in zip(COUNTS, factors, strict=True))


@pytest.mark.parametrize('threshold', [0.5, 0.05])
def test_repeat_factor_rounds_each_image_up_or_down(threshold):
    sampler = built(INDEX, SAMPLER_TYPE='repeat_factor', SAMPLER_REPEAT_THRESHOLD=threshold)
    expected = expected_times(threshold)
    num_epochs, total = 200, np.zeros(len(LABELS))
    for epoch in range(num_epochs):
        rows = sampler.epoch_rows(epoch)
        assert rows.shape == (len(LABELS),)
        assert rows.dtype == np.int64
        times = np.bincount(rows, minlength=len(LABELS))
        assert (times >= np.floor(expected - 1e-9)[LABELS]).all()
        assert (times <= np.ceil(expected + 1e-9)[LABELS]).all()
        total += times
    # Both the classes and the images of a class follow their distribution.
    drawn = np.bincount(LABELS, weights=total, minlength=7)
    seen = np.array(COUNTS) > 0
    probabilities = (expected * COUNTS)[seen] / len(LABELS)
    assert stats.chisquare(drawn[seen], probabilities * drawn.sum()).pvalue > 1e-3
    for label in (0, 1, 3, 4):
        assert stats.chisquare(total[label == LABELS]).pvalue > 1e-3
        # Rounding is random: it does not favor some images.
        fraction = expected[label] % 1
        spread = max(1e-9, num_epochs * fraction * (1 - fraction))
        assert abs(total[label == LABELS] - num_epochs * expected[label]).max() < 5 * math.sqrt(spread) + 1e-6


def test_repeat_factor_without_rare_classes_draws_each_image_once():
    rows = built(INDEX, SAMPLER_TYPE='repeat_factor', SAMPLER_REPEAT_THRESHOLD=0.0).epoch_rows(3)
    assert sorted(rows.tolist()) == list(range(len(LABELS)))


def test_the_order_of_systematic_draws_is_random():
    """Repeats of an image are adjacent no more often than by chance."""
    sampler = Sampler(lambda counts, progress: counts > 0, INDEX, seed=4, max_epoch=1, systematic=True)
    pairs = [sampler.epoch_rows(epoch) for epoch in range(100)]
    same = sum(np.count_nonzero(rows[1:] == rows[:-1]) for rows in pairs)
    times = np.bincount(pairs[0], minlength=len(LABELS))
    chance = (times * (times - 1)).sum() / len(LABELS) * 100
    assert abs(same - chance) < 5 * math.sqrt(chance), (same, chance)


def test_beta_reaches_the_sampler():
    for beta in (0.5, 0.99):
        sampler = built(INDEX, SAMPLER_TYPE='effective_number', SAMPLER_BETA=beta)
        drawn = sum(np.bincount(LABELS[sampler.epoch_rows(epoch)], minlength=7) for epoch in range(40))
        weights = np.array([n * (1 - beta) / (1 - beta**n) if n else 0.0 for n in COUNTS])
        seen = weights > 0
        assert stats.chisquare(drawn[seen], (weights / weights.sum() * drawn.sum())[seen]).pvalue > 1e-3


@pytest.mark.parametrize('seed', range(4))
def test_intervals_are_those_of_searchsorted(seed):
    random = np.random.default_rng(seed)
    edges = np.cumsum(random.random(300) ** 8 * (random.random(300) < 0.7))
    points = np.concatenate([random.random(5000) * edges[-1], edges, np.nextafter(edges, 0), [0.0]])
    np.testing.assert_array_equal(_interval_of(points, edges), np.searchsorted(edges, points, side='right'))


@pytest.mark.parametrize(('batch_size', 'per_class'), [(12, 4), (8, 2), (20, 4), (5, 1), (10, 2), (15, 5)])
@pytest.mark.parametrize('seed', range(3))
def test_class_batches(batch_size, per_class, seed):
    sampler = ClassBatches(INDEX, seed, batch_size, per_class)
    for epoch in (0, 3):
        rows = sampler.epoch_rows(epoch)
        assert rows.shape == (len(LABELS),)
        assert rows.dtype == np.int64
        drawn_images = {label: [] for label in range(7)}
        for start in range(0, len(rows) - batch_size + 1, batch_size):
            batch = rows[start : start + batch_size]
            groups = batch.reshape(-1, per_class)
            labels = LABELS[groups]
            assert (labels == labels[:, :1]).all()
            assert len(set(labels[:, 0].tolist())) == batch_size // per_class
            for group, label in zip(groups.tolist(), labels[:, 0].tolist(), strict=True):
                drawn_images[label] += group
                if COUNTS[label] >= per_class:
                    assert len(set(group)) == per_class
        turns = [len(drawn_images[label]) // per_class for label in range(7) if COUNTS[label]]
        assert max(turns) - min(turns) <= 1 + (len(LABELS) % batch_size > 0)
        for label in range(7):
            assert (not drawn_images[label]) == (COUNTS[label] == 0)
            # No image of a class is repeated before all of them have been drawn.
            times = Counter(drawn_images[label])
            if len(drawn_images[label]) >= COUNTS[label] > 0:
                assert len(times) == COUNTS[label]
            assert not times or max(times.values()) - min(times.values()) <= 1 or len(times) < COUNTS[label]
            assert max(times.values(), default=0) <= -(-len(drawn_images[label]) // max(1, COUNTS[label]))


def test_class_batches_are_a_pure_function_of_seed_and_epoch():
    sampler = ClassBatches(INDEX, 3, 12, 4)
    first = sampler.epoch_rows(2).tolist()
    sampler.epoch_rows(7)
    assert sampler.epoch_rows(2).tolist() == first == ClassBatches(INDEX, 3, 12, 4).epoch_rows(2).tolist()
    assert sampler.epoch_rows(1).tolist() != first
    assert ClassBatches(INDEX, 4, 12, 4).epoch_rows(2).tolist() != first


def test_class_batches_draw_classes_and_images_uniformly():
    """Pairs of classes in a batch, and the images of a large class in an epoch, are uniform."""
    index = ClassIndex(np.repeat(np.arange(6), 30).astype(np.int32), 6)
    together, shown = np.zeros((6, 6)), np.zeros(180)
    for epoch in range(300):
        batches = ClassBatches(index, 5, 8, 2).epoch_rows(epoch)[:176].reshape(-1, 8)
        for batch in batches[:11]:  # half an epoch: not all images are drawn
            labels = np.unique(batch // 30)
            together[np.ix_(labels, labels)] += 1
            shown[batch] += 1
    assert stats.chisquare(together[np.triu_indices(6, 1)]).pvalue > 1e-3
    assert stats.chisquare(shown).pvalue > 1e-3


def test_class_batches_draw_rows_of_the_index_only():
    capped = INDEX.capped(10, 0)
    rows = ClassBatches(capped, 0, 8, 2).epoch_rows(0)
    assert len(rows) == len(capped)
    assert set(rows.tolist()) <= set(capped.rows.tolist())


def test_a_set_smaller_than_a_batch_is_one_batch():
    index = ClassIndex(np.array([0, 0, 0, 1, 1, 2], np.int32), 4)
    rows = ClassBatches(index, 0, 64, 2).epoch_rows(0)
    assert sorted(Counter(index.labels[rows].tolist()).values()) == [2, 2, 2]


def test_too_few_classes_for_a_batch():
    with pytest.raises(UserError, match=r'SAMPLER.IMAGES_PER_CLASS is 2, .* 16 images needs 8 classes, but only 5'):
        built(INDEX, SAMPLER_TYPE='class_balance', SAMPLER_IMAGES_PER_CLASS=2, TRAIN_BATCH_SIZE=16)


def test_build_sampler_returns_class_batches_and_switches_to_them():
    options = {'SAMPLER_IMAGES_PER_CLASS': 4, 'TRAIN_BATCH_SIZE': 8, 'SEED': 5}
    expected = ClassBatches(INDEX, 5, 8, 4)
    assert (
        built(INDEX, SAMPLER_TYPE='class_balance', **options).epoch_rows(2).tolist() == expected.epoch_rows(2).tolist()
    )
    switching = built(INDEX, SAMPLER_SWITCH_TYPE='class_balance', SAMPLER_SWITCH_EPOCH=3, **options)
    assert switching.epoch_rows(3).tolist() == expected.epoch_rows(3).tolist()
    assert switching.epoch_rows(2).tolist() == Sampler(instance_balance, INDEX, 5, 9).epoch_rows(2).tolist()
