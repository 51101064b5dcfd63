"""Fitted scales against the minimum that L-BFGS finds."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lib.posthoc.linear_head import fit_scales, head_predictions
from tests.posthoc.features_of import drawn, features


def balanced_loss(head, found_features, scales) -> float:
    logits = head.logits(torch.from_numpy(found_features.values)).double() * torch.as_tensor(scales)
    losses = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(found_features.labels), reduction='none'
    ).numpy()
    labels = found_features.labels
    return float(np.mean([losses[labels == label].mean() for label in np.unique(labels)]))


@pytest.mark.parametrize('seed', range(2), ids='seed{}'.format)
def test_scales_come_near_the_minimum(seed):
    found_features, head = drawn(seed, noise=2.0)
    head = head.scaled(torch.linspace(0.3, 2.0, 6))
    found = fit_scales(head, found_features, np.arange(400), seed=seed)
    start = np.zeros(6)
    best = minimize(lambda logs: balanced_loss(head, found_features, np.exp(logs)), start, method='L-BFGS-B').fun
    before = balanced_loss(head, found_features, np.ones(6))
    after = balanced_loss(head, found_features, found.numpy())
    assert after < before - 0.8 * (before - best)
    assert torch.equal(found, fit_scales(head, found_features, np.arange(400), seed=seed))


def test_rare_classes_count_as_much_as_common_ones():
    everything, head = drawn(3, num_images=4000)
    rows = np.flatnonzero((everything.labels > 0) | (np.arange(4000) < 200))
    tailed = features(everything.values[rows], everything.labels[rows])
    weakened = head.scaled(torch.tensor([0.2, 1, 1, 1, 1, 1.0]))
    found = fit_scales(weakened, tailed, np.arange(len(rows)))
    fixed = head_predictions(weakened.scaled(found), everything)
    broken = head_predictions(weakened, everything)
    of_class = everything.labels == 0
    assert fixed.correct[of_class].mean() > broken.correct[of_class].mean() + 0.1


def test_nothing_to_learn_from():
    found_features, head = drawn(4)
    with pytest.raises(ValueError, match='at least one'):
        fit_scales(head, features(found_features.values, np.full(400, -1)), np.arange(400))
