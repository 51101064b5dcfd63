"""Class priors estimated from unlabeled images against a loop, and classifiers corrected by them."""

import numpy as np
import pytest
import torch

from lib.posthoc import calibration
from lib.posthoc.calibration import fit_prior
from lib.posthoc.linear_head import head_predictions
from tests.posthoc.features_of import drawn, features

UNIFORM = torch.full((6,), 1 / 6, dtype=torch.float64).log()


def em(posteriors: np.ndarray, prior: np.ndarray, rounds: int) -> np.ndarray:
    """Saerens et al., eq. 2.4 and 2.9, image by image, with half an image added per class."""
    estimate = prior.copy()
    for _ in range(rounds):
        sums = np.full(len(prior), 0.5)
        for row in posteriors:
            weighted = row * estimate / prior
            sums += weighted / weighted.sum()
        estimate = sums / sums.sum()
    return estimate


@pytest.mark.parametrize('cached', [True, False])
def test_rounds_agree_with_a_loop(monkeypatch, cached):
    monkeypatch.setattr(calibration, '_MAX_LOGITS', 2**27 if cached else 0)
    monkeypatch.setattr(calibration, '_PRIOR_TOLERANCE', 0.0)
    found_features, head = drawn(0, num_images=60)
    prior = np.array([0.4, 0.2, 0.2, 0.1, 0.05, 0.05])
    posteriors = head.logits(torch.from_numpy(found_features.values)).double().softmax(dim=1).numpy()
    found = fit_prior(head, found_features, np.arange(60), torch.tensor(prior).log(), max_rounds=7).exp().numpy()
    np.testing.assert_allclose(found, em(posteriors, prior, 7), rtol=1e-4)


def test_priors_are_estimated_and_the_classifier_improves():
    everything, head = drawn(1, num_images=60_000, noise=1.5)
    priors = np.array([0.5, 0.3, 0.1, 0.06, 0.03, 0.01])
    rng = np.random.default_rng(1)
    sampled = rng.choice(6, 8000, p=priors)
    rows = np.concatenate(
        [np.flatnonzero(everything.labels == label)[: (sampled == label).sum()] for label in range(6)]
    )
    shifted = features(everything.values[rows], everything.labels[rows])
    found = fit_prior(head, shifted, np.arange(len(rows)), UNIFORM)
    np.testing.assert_allclose(found.exp().numpy(), np.bincount(shifted.labels, minlength=6) / len(rows), atol=0.02)
    before = head_predictions(head, shifted).correct.mean()
    after = head_predictions(head.shifted(found - UNIFORM), shifted).correct.mean()
    assert after > before + 0.01, 'seed 1'


def test_equal_priors_stay_equal():
    found_features, head = drawn(2, num_images=30_000)
    found = fit_prior(head, found_features, np.arange(30_000), UNIFORM)
    np.testing.assert_allclose(found.exp().numpy(), 1 / 6, atol=0.01)


def test_classes_without_training_images_stay_without():
    found_features, head = drawn(3)
    log_prior = torch.tensor([0.5, 0.5, 0, 0, 0, 0], dtype=torch.float64).log()
    found = fit_prior(head, found_features, np.arange(400), log_prior)
    assert found[2:].isneginf().all()
    shifted = head.shifted((found - log_prior).where(log_prior.isfinite(), -torch.inf))
    assert set(head_predictions(shifted, found_features).predicted.tolist()) <= {0, 1}
    with pytest.raises(ValueError, match='readable'):
        fit_prior(
            head, features(found_features.values, found_features.labels, np.zeros(400, bool)), np.arange(400), UNIFORM
        )
