"""Risk-coverage curve, and a threshold whose bound holds on other images."""

import math

import numpy as np
import pytest
from scipy import stats

from lib.metrics.confidence import choose_threshold, risk_coverage, upper_bound


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
