"""Open-set scores against loops, and the false-acceptance rate of conformal thresholds in simulations."""

import random

import numpy as np
import pytest
import torch

from lib.dataset.features import Features
from lib.posthoc.open_set import LogitScore, conformal_threshold, fit_prototypes

CPU = torch.device('cpu')


@pytest.fixture
def rng() -> np.random.Generator:
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    return np.random.default_rng(seed)


def features_of(values: np.ndarray, labels: np.ndarray) -> Features:
    return Features(values.astype(np.float32), labels.astype(np.int64), np.ones(len(labels), bool), [])


@pytest.mark.parametrize('name', ['max_logit', 'energy'])
def test_logit_scores(rng, name):
    logits = rng.normal(size=(20, 6)).astype(np.float32)
    left_out = rng.integers(-1, 6, 20)
    found = LogitScore(name)(torch.from_numpy(logits), torch.zeros(20, 3), torch.from_numpy(left_out))
    for row, label in enumerate(left_out.tolist()):
        others = [float(value) for column, value in enumerate(logits[row]) if column != label]
        expected = max(others) if name == 'max_logit' else np.log(np.exp(others).sum())
        assert float(found[row]) == pytest.approx(expected, rel=1e-5)


def test_prototype_score(rng):
    """Without folds the class that is left out changes nothing; each fold is fitted without its classes."""
    labels = rng.integers(0, 7, 300)
    labels[labels == 3] = 4  # a class without images
    values = rng.normal(size=(7, 12))[labels] + 0.3 * rng.normal(size=(300, 12))
    features, none = features_of(values, labels), torch.full((300,), -1)
    score = fit_prototypes(features, 7, device=CPU, about={}, num_folds=2)
    inputs = torch.zeros(300, 7), torch.from_numpy(features.values)
    plain = score(*inputs, none)
    cosines = score.prototypes.similarities(inputs[1])
    assert bool((cosines[:, 3] == -torch.inf).all())
    assert torch.equal(plain, cosines.amax(dim=1))
    assert (cosines.argmax(dim=1).numpy() == labels).mean() > 0.9
    left_out = score(*inputs, torch.from_numpy(labels))
    others = fit_prototypes(features_of(values[labels % 2 == 1], labels[labels % 2 == 1]), 7, device=CPU, about={})
    rows = np.flatnonzero(labels % 2 == 0)
    whitening = others.prototypes.whitening
    whitened = whitening(features.values)
    for row in rows[:20].tolist():
        means = [whitened[labels == label].mean(axis=0) for label in set(labels.tolist()) - {labels[row]}]
        expected = max(float(whitened[row] @ mean / np.linalg.norm(mean)) for mean in means)
        assert float(left_out[row]) == pytest.approx(expected, abs=1e-4)
    without_folds = fit_prototypes(features, 7, device=CPU, about={}, num_folds=0)
    assert torch.equal(without_folds(*inputs, torch.from_numpy(labels)), plain)


def oracle(scores, classes, max_rate):
    """Return the smallest threshold among all, by the definition, and the guaranteed rate."""
    names = set(classes)
    further = 1 if max_rate * (len(names) + 1) >= 1 - 1e-9 else 0

    def rate(threshold):
        fractions = [
            np.mean([score >= threshold for score, of in zip(scores, classes, strict=True) if of == name])
            for name in names
        ]
        return (sum(fractions) + further) / (len(names) + 1)

    candidates = [-np.inf, *(np.nextafter(np.float32(score), np.float32(np.inf)) for score in sorted(scores))]
    value = next(candidate for candidate in candidates if rate(candidate) <= max_rate + 1e-9)
    return value, max_rate if further else max_rate + 1 / (len(names) + 1)


def test_threshold(rng):
    for max_rate in (0.02, 0.1, 0.25, 0.5, 0.9):
        for num_classes in (1, 3, 9, 12):
            classes = rng.integers(0, num_classes, 60)
            scores = rng.normal(size=60).round(1).astype(np.float32)  # with ties
            found = conformal_threshold(scores, classes, max_rate)
            value, guaranteed = oracle(scores.tolist(), classes.tolist(), max_rate)
            assert found.value == pytest.approx(value)
            assert found.guaranteed == pytest.approx(guaranteed)
            assert (found.num_classes, found.num_images) == (len(set(classes.tolist())), 60)
            assert not (found.num_needed < found.num_classes and found.guaranteed > max_rate)
    assert conformal_threshold(scores, classes, 0.01).num_needed == 99
    with pytest.raises(ValueError, match='at least one image'):
        conformal_threshold(scores[:0], classes[:0], 0.1)


@pytest.mark.parametrize(('max_rate', 'num_classes'), [(0.05, 40), (0.05, 19), (0.01, 30), (0.01, 120)])
def test_rate_holds_for_further_classes(rng, max_rate, num_classes):
    """The mean rate over draws is at most the guaranteed one, also where the images of a class have similar scores."""
    for between in (0.0, 1.0, 5.0):
        rates, by_images = [], []
        for _ in range(400):
            sizes = rng.integers(1, 30, num_classes)
            classes = np.repeat(np.arange(num_classes), sizes)
            scores = between * rng.standard_t(3, num_classes)[classes] + rng.normal(size=len(classes))
            further = between * rng.standard_t(3, (50, 1)) + rng.normal(size=(50, 20))
            found = conformal_threshold(scores.astype(np.float32), classes, max_rate)
            rates.append(found.accepts(further).mean())
            by_images.append((further >= np.quantile(scores, 1 - max_rate)).mean())
        noise = np.std(rates) / 20
        assert np.mean(rates) <= found.guaranteed + 3 * noise
        if between and found.guaranteed == max_rate:  # counting images alone does not hold it
            assert np.mean(rates) < np.mean(by_images)
