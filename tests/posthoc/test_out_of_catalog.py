"""Images that fit no class: residuals against a singular value decomposition, and strangers among images."""

import random

import numpy as np
import pytest

from lib.posthoc.judged_images import JudgedImages
from lib.posthoc.out_of_catalog import find_strangers, is_out_of_catalog, subspace_residuals
from tests.oracles.label_errors import candidates_of


@pytest.fixture
def seed() -> int:
    number = random.randrange(10**6)
    print(f'seed {number}')
    return number


def images_of(values: np.ndarray, labels: np.ndarray | None = None) -> JudgedImages:
    labels = np.zeros(len(values), np.int64) if labels is None else labels
    return JudgedImages(values, np.arange(len(values)), labels, 3, np.ones(len(values), np.float32))


def test_residuals(seed):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(200, 60)) @ rng.normal(size=(60, 60)) + 3).astype(np.float32)
    trusted = rng.random(200) < 0.5
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    centered = unit - unit[trusted].mean(axis=0)
    directions = np.linalg.svd(centered[trusted], full_matrices=False)[2][:3]  # one for 20 features
    expected = np.linalg.norm(centered - centered @ directions.T @ directions, axis=1)
    np.testing.assert_allclose(subspace_residuals(images_of(values), trusted), expected, rtol=1e-3)


def test_strangers(seed):
    rng = np.random.default_rng(seed)
    plane, other = rng.normal(size=(5, 100)), rng.normal(size=(5, 100))
    values = rng.normal(size=(1000, 5)) @ plane + 0.5 * rng.normal(size=(1000, 100))
    values[:50] = rng.normal(size=(50, 5)) @ other + 0.5 * rng.normal(size=(50, 100))
    confirmed = rng.random(1000) < 0.8
    confirmed[:50] = rng.random(50) < 0.05
    residuals = subspace_residuals(images_of(values.astype(np.float32)), confirmed)
    similarity = np.where(np.arange(1000) < 50, rng.normal(0, 0.1, 1000), rng.normal(0.6, 0.1, 1000))
    found = is_out_of_catalog(residuals, similarity, confirmed, np.full(1000, 400))
    assert found[:50][~confirmed[:50]].mean() > 0.9  # the number of confirmed ones is random
    assert found[50:].mean() < 0.02
    assert not is_out_of_catalog(residuals, np.where(similarity < 0.4, 1.0, similarity), confirmed, np.full(1000, 400))[
        :50
    ].any()


def test_without_confirmed_images():
    residuals, similarity = np.array([1.0, np.nan, 2.0]), np.array([0.1, np.nan, 0.0])
    assert not is_out_of_catalog(residuals, similarity, np.zeros(3, bool), np.full(3, 9)).any()
    assert not is_out_of_catalog(residuals, similarity, np.array([False, True, False]), np.full(3, 9)).any()
    outside = is_out_of_catalog(
        np.r_[np.ones(50), 9, np.nan], np.zeros(52), np.r_[np.ones(50, bool), False, False], np.full(52, 50)
    )
    assert outside.sum() == 1
    nothing = candidates_of(np.eye(3)[[1, 2, 0]], np.array([0, 1, 2]), 2)
    assert not find_strangers(images_of(np.ones((3, 6), np.float32)), nothing).any()
    with pytest.raises(ValueError, match='at least one trusted image'):
        subspace_residuals(images_of(np.ones((4, 6), np.float32)), np.zeros(4, bool))
