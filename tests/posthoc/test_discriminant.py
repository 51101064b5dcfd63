"""Cross-fitted linear discriminant analysis, against its definition for one fold after the other."""

import random

import numpy as np
import pytest
import torch

from lib.posthoc.crossfit import stratified_folds
from lib.posthoc.discriminant import SCALES, SHRINKAGES, FoldedDiscriminants
from lib.posthoc.judged_images import JudgedImages
from tests.posthoc.test_out_of_fold import CPU, NEVER, drawn, unit


@pytest.fixture
def seed() -> int:
    number = random.randrange(10**6)
    print(f'seed {number}')
    return number


def defined(images: JudgedImages, others: np.ndarray, shrinkage: float) -> np.ndarray:
    """Return logits (n, num_classes) of all images by Gaussians that are fitted to `others`; -inf without images.

    The squared length of each mean is reduced by its expected error.
    """
    features = unit(images.values[images.rows].astype(np.float64))
    weights, labels = images.weights[others].astype(np.float64), images.labels[others]
    means, residuals = {}, np.zeros((len(others), images.num_features))
    for label in np.unique(labels):
        own = labels == label
        means[label] = np.average(features[others[own]], axis=0, weights=weights[own])
        residuals[own] = features[others[own]] - means[label]
    covariance = (residuals.T * weights) @ residuals / weights.sum()
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    logits = np.full((len(images), images.num_classes), -np.inf)
    for label, mean in means.items():
        distances = np.array([(each - mean) @ np.linalg.solve(shrunk, each - mean) for each in features])
        of_class = weights[labels == label]
        surplus = np.trace(np.linalg.solve(shrunk, covariance)) * (of_class**2).sum() / of_class.sum() ** 2
        logits[:, label] = (surplus - distances) / 2
    return logits


def centered(logits: np.ndarray) -> np.ndarray:
    """Return the logits of the known classes without the term that they share."""
    known = np.isfinite(logits[0])
    return logits[:, known] - logits[:, known].mean(axis=1, keepdims=True)


@pytest.mark.parametrize('shrinkage', [0.1, 0.7])
def test_each_fold_is_fitted_to_the_others(seed, shrinkage):
    images = drawn(seed, num_images=120, num_classes=5)
    folds = stratified_folds(images.labels, 3)
    problem = FoldedDiscriminants(images, folds, CPU)
    features = torch.from_numpy(unit(images.values[images.rows])).float()
    for fold in range(3):
        head = problem.fit(fold, shrinkage)
        expected = defined(images, np.flatnonzero(folds != fold), shrinkage)
        found = head.logits(features).double().numpy()
        found[:, head.bias.numpy() <= NEVER / 2] = -np.inf
        assert (np.isfinite(found) == np.isfinite(expected)).all()
        np.testing.assert_allclose(centered(found), centered(expected), rtol=5e-3, atol=0.05)


def test_shrinkage_and_scale_are_the_likeliest_of_the_first_fold(seed):
    images = drawn(seed, num_images=200, num_classes=6)
    folds = stratified_folds(images.labels, 4)
    problem = FoldedDiscriminants(images, folds, CPU)
    held_out = np.flatnonzero((folds == 0) & (images.labels > 0))
    features = torch.from_numpy(unit(images.values[images.rows])).float()[held_out]
    losses = {}
    for shrinkage in SHRINKAGES:
        logits = problem.fit(0, shrinkage).logits(features).double().numpy()
        for scale in SCALES.tolist():
            scaled = logits * scale - (logits * scale).max(axis=1, keepdims=True)
            own = scaled[np.arange(len(held_out)), images.labels[held_out]]
            losses[shrinkage, scale] = ((np.log(np.exp(scaled).sum(axis=1)) - own) * images.weights[held_out]).sum()
    assert losses[problem.select()] == pytest.approx(min(losses.values()), rel=1e-4, abs=1e-5)


def test_images_of_weight_zero_do_not_count(seed):
    images = drawn(seed)
    folds = stratified_folds(images.labels, 3)
    weights, other = images.weights.copy(), images.labels.copy()
    weights[150:] = 0
    other[150:] = 1
    heads = [
        FoldedDiscriminants(JudgedImages(images.values, images.rows, labels, 9, weights), folds, CPU).fit(1, 0.5)
        for labels in (images.labels, other)
    ]
    torch.testing.assert_close(heads[0].weight, heads[1].weight)
