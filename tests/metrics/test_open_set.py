"""AUROC, FPR95 and OSCR of open-set recognition, against loops over pairs and thresholds."""

import itertools
import random

import numpy as np
import pytest

from lib.metrics.open_set import open_set_metrics


def oracle(known, correct, unknown):
    """Return auroc, fpr95 and oscr by loops; OSCR as the area under its curve, by trapezoids."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in known for b in unknown]
    thresholds = sorted({*known, *unknown, np.inf}, reverse=True)
    fpr95 = next(
        sum(b >= t for b in unknown) / len(unknown)
        for t in thresholds
        if sum(a >= t for a in known) / len(known) >= 0.95
    )
    points = [
        (
            sum(b >= t for b in unknown) / len(unknown),
            sum(a >= t and right for a, right in zip(known, correct, strict=True)) / len(known),
        )
        for t in thresholds
    ]
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points))
    return sum(wins) / len(wins), fpr95, area


def test_metrics():
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    rng = np.random.default_rng(seed)
    for _ in range(20):
        known = rng.normal(1, 1, rng.integers(1, 30)).round(1).astype(np.float32)  # with ties
        unknown = rng.normal(0, 1, rng.integers(1, 30)).round(1).astype(np.float32)
        correct = rng.random(len(known)) < 0.7
        found = open_set_metrics(known, correct, unknown)
        expected = oracle(known.tolist(), correct.tolist(), unknown.tolist())
        assert [found['auroc'], found['fpr95'], found['oscr']] == pytest.approx(expected)
        assert found['accuracy'] == correct.mean()


def test_limits():
    scores, others = np.array([2.0, 3.0]), np.array([0.0, 1.0, 1.5])
    all_right = open_set_metrics(scores, np.ones(2, bool), others)
    assert all_right == {'auroc': 1.0, 'fpr95': 0.0, 'oscr': 1.0, 'accuracy': 1.0}
    assert open_set_metrics(others, np.ones(3, bool), scores)['fpr95'] == 1.0
    half_right = open_set_metrics(scores, np.array([True, False]), others)
    assert half_right['oscr'] == half_right['accuracy'] == 0.5
    with pytest.raises(ValueError, match='one known and one unknown'):
        open_set_metrics(scores, np.ones(2, bool), np.zeros(0))
