"""Risk-coverage curve, and a threshold whose bound holds on other images."""

import math

import numpy as np
import pytest
from scipy import stats

from lib.metrics.confidence import (
    calibration_curve,
    choose_threshold,
    first_per_class,
    risk_coverage,
    risk_in_mix,
    smallest_bound,
    upper_bound,
)
from lib.metrics.predictions import Predictions


@pytest.mark.parametrize('seed', range(4), ids='seed{}'.format)
def test_the_curve_agrees_with_a_loop(seed):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, 20, 60) / 20  # with ties
    right = rng.uniform(size=60) < confidence
    curve = risk_coverage(confidence, right)
    assert curve.thresholds.tolist() == sorted(set(confidence), reverse=True)
    for threshold, coverage, risk in zip(curve.thresholds, curve.coverage, curve.risk, strict=True):
        accepted = confidence >= threshold
        assert coverage == pytest.approx(accepted.mean())
        assert risk == pytest.approx(1 - right[accepted].mean())
    assert curve.area == pytest.approx(np.dot(np.diff(curve.coverage, prepend=0), curve.risk))


@pytest.mark.parametrize(('wrong', 'total'), [(0, 1), (0, 50), (1, 10), (7, 200), (199, 200), (5, 5), (300, 150_000)])
def test_bound_is_clopper_pearson(wrong, total):
    exact = 1.0 if wrong == total else stats.beta.ppf(0.95, wrong + 1, total - wrong)
    assert upper_bound(wrong, total, 0.95) == pytest.approx(exact, abs=1e-7)


@pytest.mark.parametrize('seed', range(3), ids='seed{}'.format)
def test_the_threshold_has_the_largest_coverage(seed):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(size=2000)
    right = rng.uniform(size=2000) < 0.5 + confidence / 2
    curve = risk_coverage(confidence, right)
    found = choose_threshold(curve, 0.1)
    bounds = [
        1.0 if wrong == total else stats.beta.ppf(0.95, wrong + 1, total - wrong)
        for wrong, total in zip(np.rint(curve.risk * curve.num_accepted), curve.num_accepted, strict=True)
    ]
    best = max(index for index, bound in enumerate(bounds) if bound <= 0.1)
    assert found.value == curve.thresholds[best]
    assert found.coverage == curve.coverage[best]
    assert found.bound == pytest.approx(bounds[best], abs=1e-7)


@pytest.mark.long
def test_the_bound_holds_on_other_images():
    rng = np.random.default_rng(0)
    holds = []
    for _ in range(200):
        confidence = rng.uniform(size=(2, 1000))
        right = rng.uniform(size=(2, 1000)) < 0.5 + confidence / 2
        found = choose_threshold(risk_coverage(confidence[0], right[0]), 0.1)
        # The true risk above a threshold t: the mean of (1 - c) / 2 for c from t to 1.
        holds.append((1 - found.value) / 4 <= 0.1)
    assert np.mean(holds) > 0.9, 'seed 0'


def test_no_threshold_holds_the_risk():
    curve = risk_coverage(np.array([0.9, 0.8]), np.array([False, False]))
    found = choose_threshold(curve, 0.1)
    assert (found.value, found.coverage) == (math.inf, 0.0)
    with pytest.raises(ValueError, match='at least one'):
        risk_coverage(np.zeros(0), np.zeros(0, bool))


@pytest.mark.parametrize('seed', range(5))
def test_calibration_is_isotonic_regression(seed):
    """By the max-min formula; some confidences are equal."""
    random = np.random.default_rng(seed)
    confidence = random.random(60).round(1 + seed % 2).astype(np.float32)
    correct = random.random(60) < confidence**2
    levels = np.unique(confidence)

    def mean(low, high):
        return correct[(confidence >= low) & (confidence <= high)].mean()

    expected = [max(min(mean(low, high) for high in levels[levels >= level]) for low in levels[levels <= level])
                for level in levels]  # fmt: skip
    curve = calibration_curve(confidence, correct)
    np.testing.assert_allclose(curve(levels), expected)
    np.testing.assert_allclose(curve(levels + 1e-4), expected)  # between two levels, that of the lower one
    assert curve(np.array([-1.0])) == expected[0]
    # The accuracy among all from the start of a step on is never below that of the step.
    assert all(mean(start, 1.0) >= value - 1e-12 for start, value in zip(curve.starts, curve.accuracies, strict=True))


@pytest.mark.parametrize('seed', range(3))
def test_the_smallest_bound(seed):
    random = np.random.default_rng(seed)
    confidence = random.random(400)
    curve = risk_coverage(confidence, random.random(400) < confidence)
    wrong = np.rint(curve.risk * curve.num_accepted).astype(int)
    bounds = [upper_bound(*pair) for pair in zip(wrong.tolist(), curve.num_accepted.tolist(), strict=True)]
    assert smallest_bound(curve) == pytest.approx(min(bounds))
    assert choose_threshold(curve, min(bounds) + 1e-6).coverage > 0
    assert choose_threshold(curve, min(bounds) - 1e-6).coverage == 0


def test_first_per_class():
    classes = np.array([3, 0, 3, 3, 0, 7])
    assert first_per_class(classes, 2).tolist() == [1, 4, 0, 2, 5]
    assert first_per_class(classes[:0], 2).tolist() == []


def test_risk_in_another_mix():
    """Class 0 is wrong once in four, class 1 never; class 2 is unknown and counts with the error of all, 1 in 5."""
    labels, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 0, 0, 1])
    topk = predicted[:, None]
    accepted = Predictions(labels, topk, np.ones((5, 1), np.float32), np.zeros(5, np.float32))
    assert risk_in_mix(accepted, np.array([0])) == 0.25
    assert risk_in_mix(accepted, np.array([0, 1, 1, 2])) == pytest.approx((0.25 + 0.2) / 4)
