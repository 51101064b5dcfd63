"""Two models on the same images, against scipy and against loops."""

import numpy as np
import pytest
from scipy.stats import binomtest

from lib.metrics.paired import compare, mcnemar
from tests.metrics.cases import predictions_of


@pytest.mark.parametrize(
    'pair', [(0, 0), (0, 1), (1, 0), (3, 3), (2, 7), (0, 30), (40, 55), (900, 1100), (60_000, 60_500), (10, 100_000)]
)
def test_mcnemar_is_the_exact_binomial(pair):
    expected = binomtest(pair[0], sum(pair)).pvalue if sum(pair) else 1.0
    assert mcnemar(*pair) == pytest.approx(expected, rel=1e-8, abs=1e-300)
    assert mcnemar(*pair) == mcnemar(*pair[::-1])


@pytest.mark.parametrize('seed', range(5))
def test_comparison_agrees_with_a_loop(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(-1, 8, 90)
    first, second = (np.where(random.random(90) < 0.6, labels, random.integers(-1, 9, 90)) for _ in range(2))
    found = compare(predictions_of(labels, first), predictions_of(labels, second), 10)
    rows = [row for row in range(90) if labels[row] >= 0]
    assert found.images == len(rows)
    assert found.only_first == sum(first[row] == labels[row] != second[row] for row in rows)
    assert found.only_second == sum(second[row] == labels[row] != first[row] for row in rows)
    errors = []
    for predicted in (first, second):
        of_class = [[predicted[row] != labels[row] for row in rows if labels[row] == c] for c in range(10)]
        errors.append(np.mean([np.mean(wrong) for wrong in of_class if wrong]))
    assert found.difference == pytest.approx(errors[1] - errors[0])
    assert found.interval[0] <= found.difference <= found.interval[1]


def test_a_model_does_not_differ_from_itself():
    labels = np.arange(100) % 20
    one = predictions_of(labels, np.where(np.arange(100) % 3, labels, 0))
    found = compare(one, one, 20)
    assert (found.only_first, found.only_second, found.difference, found.p_value) == (0, 0, 0.0, 1.0)
    assert found.interval[0] < 0 < found.interval[1]


def test_a_better_model_is_significant():
    labels = np.arange(600) % 300
    worse = np.where(np.arange(600) % 4 == 0, -1, labels)
    found = compare(predictions_of(labels, worse), predictions_of(labels, labels), 300)
    assert found.difference == pytest.approx(-0.25)
    assert found.interval[1] < -0.2
    assert found.p_value < 1e-30


def test_other_images_cannot_be_compared():
    with pytest.raises(ValueError, match='same images'):
        compare(predictions_of([0, 1], [0, 1]), predictions_of([1, 0], [0, 1]), 2)
    with pytest.raises(ValueError, match='same images'):
        compare(predictions_of([0, 1], [0, 1]), predictions_of([0], [0]), 2)
    with pytest.raises(ValueError, match='labeled'):
        compare(predictions_of([-1], [0]), predictions_of([-1], [0]), 2)
