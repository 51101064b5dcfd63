"""Candidates from a matrix of probabilities, as benchmarks/clean.py passes to both sides, and its memory samples."""

import os
import random
import sys

import numpy as np
import pytest

from benchmarks.child import anonymous_bytes
from benchmarks.clean import candidates_of, f1_of, with_noise


def test_candidates_of_probabilities():
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(40, 0.3), 2500).astype(np.float32) + np.float32(1e-6)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = rng.integers(0, 40, 2500)
    found = candidates_of(probabilities, labels)
    order = np.argsort(-probabilities, axis=1, kind='stable')[:, :10]
    best = np.take_along_axis(probabilities, order, 1)
    np.testing.assert_array_equal(np.take_along_axis(probabilities, found.classes.astype(np.int64), 1), best)
    np.testing.assert_allclose(found.logits, np.log(best), rtol=1e-5)
    np.testing.assert_allclose(found.own, np.log(probabilities[np.arange(2500), labels]), rtol=1e-5)
    np.testing.assert_allclose(found.log_sum, 0, atol=1e-5)
    np.testing.assert_allclose(found.log_sum_2, np.log((probabilities**2).sum(axis=1)), rtol=1e-4, atol=1e-5)


def test_noise_and_f1():
    labels = np.arange(1000) % 7
    noisy = with_noise(labels, 7, 0.2, np.random.default_rng(0))
    assert (noisy != labels).sum() == 200
    assert (noisy >= 0).all()
    assert (noisy < 7).all()
    wrong = np.array([True, True, False, False])
    assert f1_of(np.array([True, False, True, False]), wrong) == 0.5  # precision and recall 0.5
    assert f1_of(wrong, wrong) == 1


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_a_large_array_is_counted():
    before = anonymous_bytes(os.getpid())
    array = np.ones(64 << 20, np.uint8)
    assert anonymous_bytes(os.getpid()) - before > 0.9 * array.nbytes
