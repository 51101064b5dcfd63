"""Features of several networks side by side."""

import random

import numpy as np

from lib.posthoc.judged_images import joined_features


def test_joined_features_have_equal_weight(tmp_path):
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    rng = np.random.default_rng(seed)
    sources = [rng.normal(size=(50, 8)) * 100 + 5, rng.normal(size=(50, 20)).astype(np.float16) + 1]
    rows = np.flatnonzero(rng.random(50) < 0.8)
    joined = joined_features(sources, rows, tmp_path / 'joined')
    assert joined.shape == (50, 28)
    assert not joined[np.setdiff1d(np.arange(50), rows)].any()
    start = 0
    for values in sources:
        unit = values[rows].astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        centered = unit - unit.mean(axis=0)
        expected = centered / np.sqrt((centered**2).sum(axis=1).mean())
        np.testing.assert_allclose(joined[rows, start : start + values.shape[1]], expected, atol=2e-3)
        start += values.shape[1]
    np.testing.assert_array_equal(joined_features(sources, rows, tmp_path / 'joined'), joined)
    others = joined_features(sources, rows[1:], tmp_path / 'joined')  # of other images: computed again
    assert not others[rows[0]].any()
