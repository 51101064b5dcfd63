"""Temperatures against scipy's minimum."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from lib.posthoc.calibration import fit_temperature, fit_temperatures, shot_group_of
from lib.posthoc.linear_head import GroupScaledHead, head_predictions
from tests.posthoc.features_of import drawn, features


def loss_at(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    scaled = logits.astype(np.float64) / temperature
    return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize('factor', [0.05, 0.5, 1.0, 3.0, 40.0])
@pytest.mark.parametrize('seed', range(2), ids='seed{}'.format)
def test_temperature_is_the_minimum(seed, factor):
    found_features, head = drawn(seed, noise=2.0)
    head = head.scaled(factor)
    rows = np.arange(0, 400, 2)
    logits = head.logits(torch.from_numpy(found_features.values)).numpy()[rows]
    labels = found_features.labels[rows]
    expected = minimize_scalar(lambda log: loss_at(logits, labels, np.exp(log)), bounds=(-8, 8), method='bounded')
    found = fit_temperature(head, found_features, rows)
    assert loss_at(logits, labels, found) <= expected.fun + 1e-7
    assert found == pytest.approx(np.exp(expected.x), rel=1e-3)


def test_a_calibrated_classifier_keeps_its_temperature():
    many, head = drawn(3, num_images=40_000)
    assert fit_temperature(head, many, np.arange(40_000)) == pytest.approx(1, abs=0.02)


def test_groups_have_their_own_temperature():
    found_features, head = drawn(4, num_images=3000, noise=2.0)
    group_of = np.array([0, 0, 1, 1, 2, 2])
    predicted = head.logits(torch.from_numpy(found_features.values)).argmax(dim=1).numpy()
    found = fit_temperatures(head, found_features, np.arange(3000), group_of)
    for group in range(3):
        rows = np.flatnonzero(group_of[predicted] == group)
        assert found[group] == pytest.approx(fit_temperature(head, found_features, rows), rel=1e-4)
    inverse = torch.tensor([1 / value for value in found])
    scaled = GroupScaledHead(head.weight, head.bias, inverse=inverse, group_of=torch.from_numpy(group_of))
    before, after = head_predictions(head, found_features), head_predictions(scaled, found_features)
    assert (before.predicted == after.predicted).all()
    assert after.losses.mean() < before.losses.mean() + 1e-6
    assert shot_group_of(np.array([500, 50, 5])).tolist() == [0, 1, 2]


def test_unlabeled_and_unreadable_images_do_not_count():
    found_features, head = drawn(5)
    labels, readable = found_features.labels.copy(), np.ones(400, bool)
    labels[:100], readable[100:150] = -1, False
    holed = features(found_features.values, labels, readable)
    expected = fit_temperature(head, found_features, np.arange(150, 400))
    assert fit_temperature(head, holed, np.arange(400)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match='at least one'):
        fit_temperature(head, holed, np.arange(150))
    perfect = features(100 * head.weight.numpy(), np.arange(6))
    assert np.isfinite(fit_temperature(head, perfect, np.arange(6))), 'no mistake: the smallest temperature'
