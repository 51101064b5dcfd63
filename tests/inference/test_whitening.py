"""Whitening against the covariances that it promises, scikit-learn's shrinkage, and search among scattered classes."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from lib.inference import whitening
from lib.inference.retrieval import retrieval_metrics
from lib.inference.whitening import Whitening, fit_whitening


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def draw(seed, number=400, num_classes=12, width=10):
    """Return unit features and labels; classes differ least where images of one class differ most."""
    random = np.random.default_rng(seed)
    labels = random.integers(num_classes, size=number)
    scales = np.geomspace(0.05, 2, width)
    means = random.standard_normal((num_classes, width)) * 0.3 + 1
    images = means[labels] + random.standard_normal((number, width)) * scales
    return unit(images).astype(np.float32), labels


@pytest.fixture(params=[170, 1 << 23], ids=['small blocks', 'one block'])
def blocks(request, monkeypatch):
    monkeypatch.setattr(whitening, '_BLOCK_VALUES', request.param)


def shrunk_within(features, labels):
    """Return the covariance within classes, shrunk."""
    within = np.zeros(features.shape)
    for label in np.unique(labels):
        some = labels == label
        within[some] = features[some] - features[some].mean(axis=0)
    return ledoit_wolf(within, assume_centered=True)[0]


def test_within_classes_images_become_round_and_axes_are_weighted(blocks):
    features, labels = draw(0)
    fitted = fit_whitening(features, labels)
    within = shrunk_within(features.astype(np.float64), labels)
    axes = fitted.projection.astype(np.float64)
    weights = np.sqrt(np.diagonal(axes @ within @ axes.T))
    axes /= weights[:, None]
    np.testing.assert_allclose(axes @ within @ axes.T, np.eye(10), atol=1e-4)
    # The axes are orthonormal in the whitened space, where the class means are shrunk.
    means = np.stack([features[labels == label].mean(axis=0) for label in range(12)]) - features.mean(axis=0)
    means = means * np.sqrt(np.bincount(labels) * 12 / len(labels))[:, None] @ axes.T
    shrunk = ledoit_wolf(means, assume_centered=True)[0]
    strengths = np.diagonal(shrunk)
    np.testing.assert_allclose(shrunk, np.diag(strengths), atol=1e-3)
    np.testing.assert_allclose(weights, strengths / (1 + strengths), rtol=1e-3, atol=1e-4)
    assert (np.diff(strengths) <= 1e-6).all()
    np.testing.assert_allclose(fitted.mean, features.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize('labels', [None, np.zeros(400, np.int64)], ids=['no labels', 'one class'])
def test_without_classes_axes_are_the_principal_ones(labels, blocks):
    features, _ = draw(1)
    fitted = fit_whitening(features, labels)
    centered = (features - features.mean(axis=0)).astype(np.float64)
    shrunk, whole = ledoit_wolf(centered, assume_centered=True)[0], centered.T @ centered / len(centered)
    axes = fitted.projection.astype(np.float64)
    expected = np.sort(np.linalg.eigvals(np.linalg.solve(shrunk, whole)).real)[::-1]
    weights = expected / (1 + expected)
    np.testing.assert_allclose(axes @ shrunk @ axes.T, np.diag(weights**2), atol=1e-3)


def test_images_and_classes_that_are_left_out():
    features, labels = draw(3)
    fitted = fit_whitening(features, labels)
    more = np.concatenate([features, np.zeros((5, 10), np.float32), draw(4)[0][:7]])
    again = fit_whitening(more, np.concatenate([labels, np.full(5, 3), np.full(7, -1)]))
    np.testing.assert_allclose(again.mean, fitted.mean, atol=1e-6)
    np.testing.assert_allclose(again(features) @ again(features).T, fitted(features) @ fitted(features).T, atol=1e-4)
    assert (fitted(more)[400:405] == 0).all()


def test_whitened_features_have_unit_length_and_any_scale_before(blocks):
    features, labels = draw(5)
    fitted = fit_whitening(features, labels, dimensions=4)
    whitened = fitted(features)
    assert (whitened.shape, whitened.dtype, fitted.dimensions) == ((400, 4), np.float32, 4)
    np.testing.assert_allclose(np.linalg.norm(whitened, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(fitted(7 * features), whitened, atol=1e-5)
    np.testing.assert_allclose(fitted(features.astype(np.float16)), whitened, atol=0.02)
    first = Whitening(fitted.mean, fitted.projection[:2])(features)
    np.testing.assert_allclose(first, unit(whitened[:, :2]), atol=1e-4)


def test_search_among_scattered_classes_is_better():
    for seed in range(3):
        features, labels = draw(seed, number=800)
        fit, queries, gallery = features[:400], features[400:500], features[500:]
        fitted = fit_whitening(fit, labels[:400])
        plain = retrieval_metrics(queries, labels[400:500], gallery, labels[500:]).images
        better = retrieval_metrics(fitted(queries), labels[400:500], fitted(gallery), labels[500:]).images
        assert better['map@r'] > plain['map@r'] + 0.05, (seed, plain, better)


@pytest.mark.parametrize('number', [1, 2, 3])
def test_few_images(number):
    features, _ = draw(6)
    whitened = fit_whitening(features[:number], np.arange(number))(features)
    assert np.isfinite(whitened).all()


def test_nothing_to_fit():
    with pytest.raises(ValueError, match='no features'):
        fit_whitening(np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match='not finite'):
        fit_whitening(np.full((4, 3), np.inf, np.float32))
    with pytest.raises(ValueError, match='cannot keep 4 axes of 3 features'):
        fit_whitening(np.eye(3, dtype=np.float32), dimensions=4)
