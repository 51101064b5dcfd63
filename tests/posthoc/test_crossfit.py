"""Cross-fitting reports a real gain, and none where there is none."""

import numpy as np
import pytest
import torch

from lib.posthoc.crossfit import cross_fit_tau, stratified_folds, subset
from lib.posthoc.tau_curve import weighted_accuracy
from lib.posthoc.tau_sweep import TauSweep

METRIC = 'mean_class_error'


@pytest.mark.parametrize('seed', range(3), ids='seed{}'.format)
def test_folds_spread_every_class(seed):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.full(17, 0), np.full(5, 1), np.full(2, 2), np.arange(3, 30)])
    rng.shuffle(labels)
    folds = stratified_folds(labels, 5, seed=seed)
    assert folds.tolist() == stratified_folds(labels, 5, seed=seed).tolist()
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 1
    for label in np.unique(labels):
        of_class = np.bincount(folds[labels == label], minlength=5)
        assert of_class.max() - of_class.min() <= 1
    with pytest.raises(ValueError, match='folds'):
        stratified_folds(labels[:3], 5)


def swept(weight, features, labels):
    sweep = TauSweep(weight, torch.zeros(len(weight)), max_tau=2.0)
    sweep.update(features, labels)
    return sweep.finish()


def problem(rng, *, biased: bool, num_classes=8, images=6, width=12):
    """Few images per class. Unbiased norms are unrelated to the classes; biased, rows of rare classes are short."""
    directions = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(num_classes, width))), dim=1).float()
    labels = torch.arange(num_classes).repeat(images)
    features = 2.2 * directions[labels] + torch.tensor(rng.normal(size=(len(labels), width))).float()
    norms = (
        torch.linspace(3.0, 0.4, num_classes) if biased else torch.tensor(rng.lognormal(0, 0.02, num_classes)).float()
    )
    return directions * norms[:, None], features, labels


def gains(seed: int, *, biased: bool, num_problems: int):
    """Return the gains over many problems: chosen on the same images, and cross-fitted."""
    rng = np.random.default_rng(seed)
    naive, honest = [], []
    for number in range(num_problems):
        weight, features, labels = problem(rng, biased=biased)
        images = swept(weight, features, labels)
        curve = images.curve(METRIC)
        before = weighted_accuracy(images.before_correct, images.labels, len(weight), METRIC)
        naive.append(1 - curve.values.min() - before)  # the best of the curve, as a grid search would report it
        found = cross_fit_tau(images, METRIC, stratified_folds(images.labels, 5, seed=number))
        honest.append(weighted_accuracy(found.correct, images.labels, len(weight), METRIC) - before)
    return np.array(naive), np.array(honest)


@pytest.mark.long
def test_without_a_real_gain_none_is_reported():
    naive, honest = gains(5, biased=False, num_problems=150)
    spread = honest.std() / np.sqrt(len(honest))
    assert honest.mean() < 2 * spread + 1e-3, f'seed 5: {honest.mean()} +- {spread}'
    assert naive.mean() > 0.002, 'the best of the curve on its own images is optimistic'
    assert naive.mean() > honest.mean() + 3 * spread


def test_a_real_gain_is_reported():
    naive, honest = gains(6, biased=True, num_problems=20)
    assert honest.mean() > 0.1, 'seed 6'
    assert naive.mean() >= honest.mean()


@pytest.mark.parametrize('seed', range(3), ids='seed{}'.format)
def test_folds_of_intervals_are_sweeps_of_the_other_images(seed):
    rng = np.random.default_rng(seed)
    weight, features, labels = problem(rng, biased=True)
    images = swept(weight, features, labels)
    folds = stratified_folds(images.labels, 4, seed=seed)
    found = cross_fit_tau(images, METRIC, folds)
    for fold in range(4):
        others, own = torch.tensor(folds != fold), torch.tensor(folds == fold)
        chosen, _ = swept(weight, features[others], labels[others]).choose(METRIC)
        assert found.taus[fold] == chosen.tau
        scaled = weight / weight.norm(dim=1, keepdim=True) ** chosen.tau
        assert (found.correct[folds == fold] == ((features[own] @ scaled.T).argmax(1) == labels[own]).numpy()).all()
    assert subset(images, folds == 0).labels.tolist() == images.labels[folds == 0].tolist()
