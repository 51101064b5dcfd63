"""Intervals of a mean over classes: their coverage beside that of a plain bootstrap, and limiting cases."""

import numpy as np
import pytest

from lib.metrics.intervals import accuracy_draws, accuracy_interval, difference_draws, difference_interval
from lib.posthoc.tau_curve import standard_error

NUM_CLASSES, NUM_SAMPLES = 200, 400


def plain_interval(right, total, seed):
    """Return percentiles of a plain stratified bootstrap: n_c draws of the n_c images of a class."""
    draws = (np.random.default_rng(seed).binomial(total, right / total, (400, len(total))) / total).mean(axis=1)
    return np.quantile(draws, [0.025, 0.975])


@pytest.mark.long
@pytest.mark.parametrize(
    ('images', 'error_rate'),
    [
        ('1', 0.05),
        ('1-5', 0.2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [('1', 0.2), ('2', 0.2), ('2', 0.05), ('1-5', 0.05)]),
    ],
)
@pytest.mark.parametrize('seed', [11])
def test_intervals_cover_the_truth_where_a_plain_bootstrap_does_not(images, error_rate, seed):
    """Nominal 95 %; accuracies differ between classes (Beta)."""
    random = np.random.default_rng(seed)
    total = {'1': np.ones(NUM_CLASSES, int), '2': np.full(NUM_CLASSES, 2), '1-5': np.arange(NUM_CLASSES) % 5 + 1}[
        images
    ]
    rates = random.beta(8 * (1 - error_rate), 8 * error_rate, NUM_CLASSES)
    covered = np.zeros(2)
    for sample in range(NUM_SAMPLES):
        right = random.binomial(total, rates)
        for method, (low, high) in enumerate(
            (accuracy_interval(right, total, seed=sample), plain_interval(right, total, sample))
        ):
            covered[method] += low <= rates.mean() <= high
    ours, plain = covered / NUM_SAMPLES
    print(f'{images} images per class, error {error_rate}: covers {ours:.3f}, a plain bootstrap {plain:.3f}')
    assert ours >= 0.93
    assert plain < 0.88


@pytest.mark.long
@pytest.mark.parametrize('seed', [12])
def test_differences_cover_the_truth(seed):
    random = np.random.default_rng(seed)
    total = np.arange(NUM_CLASSES) % 5 + 1
    gain, loss = random.beta(1, 9, NUM_CLASSES), random.beta(1, 12, NUM_CLASSES)
    covered = 0
    for sample in range(NUM_SAMPLES):
        gained = random.binomial(total, gain)
        lost = random.binomial(total - gained, loss / (1 - gain))
        low, high = difference_interval(gained, lost, total, seed=sample)
        covered += low <= (gain - loss).mean() <= high
    print(f'covers {covered / NUM_SAMPLES:.3f}')
    assert covered / NUM_SAMPLES >= 0.93


@pytest.mark.parametrize('seed', range(4))
def test_spread_of_draws_is_the_collapsed_strata_standard_error(seed):
    random = np.random.default_rng(seed)
    total = random.integers(0, 6, 3000)
    right = random.binomial(total, random.beta(4, 1, 3000))
    labels = np.repeat(np.arange(3000), total)
    is_right = np.concatenate([np.arange(n) < r for n, r in zip(total, right, strict=True)])
    expected = standard_error(is_right, labels, 3000, 'mean_class_error')
    draws = accuracy_draws(right, total, num_draws=20_000, seed=seed)
    assert draws.std() == pytest.approx(expected, rel=0.03)
    assert draws.mean() == pytest.approx((right[total > 0] / total[total > 0]).mean(), abs=0.002)


def wilson(right, total, z=1.959964):
    rate = right / total
    middle = (rate + z * z / (2 * total)) / (1 + z * z / total)
    reach = z / (1 + z * z / total) * np.sqrt(rate * (1 - rate) / total + z * z / (4 * total**2))
    return middle - reach, middle + reach


@pytest.mark.parametrize('right', [0, 1, 20, 49, 50])
def test_one_class_gives_wilsons_interval(right):
    found = accuracy_interval(np.array([right]), np.array([50]), num_draws=50_000)
    assert found == pytest.approx(wilson(right, 50), abs=0.006)


def test_intervals_without_mistakes_shrink_with_more_images():
    total = np.array([1, 2, 3, 0, 5])
    low, high = accuracy_interval(total, total)
    assert high == 1.0
    assert 0.3 < low < 0.9
    many = total * 1000
    assert 1 > accuracy_interval(many, many)[0] > 0.999
    assert accuracy_interval(0 * total, total)[0] == 0.0
    low, high = difference_interval(0 * total, 0 * total, total)
    assert -1 < low < 0 < high < 1


@pytest.mark.parametrize('total', [[1], [1, 1], [1, 2], [0, 1, 0], [2]])
def test_any_few_images_give_an_interval_around_the_estimate(total):
    total = np.array(total)
    for right in (0 * total, total, total // 2, (total > 0) * 1):
        low, high = accuracy_interval(right, total)
        estimate = (right[total > 0] / total[total > 0]).mean()
        assert 0 <= low <= estimate <= high <= 1
        assert high > low
        low, high = difference_interval(right, total - right, total)
        assert -1 <= low <= high <= 1


def test_draws_repeat_with_their_seed_and_need_images():
    total, right = np.array([1, 1, 2, 7]), np.array([1, 0, 1, 5])
    assert np.array_equal(accuracy_draws(right, total, seed=3), accuracy_draws(right, total, seed=3))
    assert not np.array_equal(accuracy_draws(right, total, seed=3), accuracy_draws(right, total, seed=4))
    with pytest.raises(ValueError, match='at least one image'):
        accuracy_draws(np.zeros(3, int), np.zeros(3, int))


def test_the_reversed_difference_has_the_opposite_sign():
    random = np.random.default_rng(5)
    total = random.integers(1, 6, 400)
    gained = random.binomial(total, 0.2)
    lost = random.binomial(total - gained, 0.1)
    one, other = difference_draws(gained, lost, total), difference_draws(lost, gained, total)
    assert one.mean() == pytest.approx(-other.mean(), abs=0.003)
    assert one.std() == pytest.approx(other.std(), rel=0.1)


def test_many_different_counts_are_drawn_in_batches():
    total = np.arange(2, 3002)
    right = total // 2
    draws = accuracy_draws(right, total, num_draws=900)  # 2.7 million numbers, more than a batch
    assert draws.std() == pytest.approx(np.sqrt((0.25 / (total - 1)).sum()) / 3000, rel=0.1)
