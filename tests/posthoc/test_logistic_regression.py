"""Logistic regression by L-BFGS: the minimum of its objective, which the test writes down on its own."""

import numpy as np
import pytest
import torch

from lib.posthoc.judged_images import JudgedImages
from lib.posthoc.logistic_regression import STRENGTHS, LogisticRegression
from tests.posthoc.test_out_of_fold import CPU, NEVER, drawn, unit


def objective(images: JudgedImages, positions, weight, bias, strength) -> torch.Tensor:
    """Return weighted mean cross entropy + strength / 2 |W|^2 on standardized unit features, float64."""
    everything = torch.from_numpy(unit(images.values[images.rows].astype(np.float64)))
    inputs = (everything - everything.mean(dim=0)) / everything.std(dim=0, correction=0)
    weights = torch.from_numpy(images.weights[positions]).double()
    labels = torch.from_numpy(images.labels[positions])
    losses = torch.nn.functional.cross_entropy(inputs[positions] @ weight.T + bias, labels, reduction='none')
    return (losses * weights).sum() / weights.sum() + strength / 2 * weight.square().sum()


def fitted_otherwise(images, positions, strength) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias by gradient descent in float64, with automatic gradients."""
    weight = torch.zeros(images.num_classes, images.num_features, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(images.num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn='strong_wolfe', tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        value = objective(images, positions, weight, bias, strength)
        value.backward()
        return value

    optimizer.step(closure)
    return weight.detach(), bias.detach()


@pytest.mark.parametrize('strength', [0.1, 0.01])
def test_fit_is_the_minimum(strength):
    images = drawn(3, num_images=200, num_classes=5)
    positions = np.arange(1, 180)  # without the only image of class 0
    head = LogisticRegression(images, CPU).fit(positions, strength)
    weight, bias = fitted_otherwise(images, positions, strength)
    features = torch.from_numpy(unit(images.values[images.rows].astype(np.float64)))
    inputs = (features - features.mean(dim=0)) / features.std(dim=0, correction=0)
    expected = (inputs @ weight.T + bias)[:, 1:].log_softmax(dim=1)
    found = head.logits(features.float())[:, 1:].log_softmax(dim=1)
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)
    assert head.bias[0] == NEVER


def test_selects_the_strength_with_the_smallest_loss():
    images = drawn(4)
    problem, fit, held_out = LogisticRegression(images, CPU), np.arange(1, 200), np.arange(200, 300)
    strength, head = problem.select(fit, held_out)
    losses = {each: problem.loss(other, held_out) for each, other in problem.path(fit, STRENGTHS)}
    features = torch.from_numpy(unit(images.values[images.rows].astype(np.float64))[held_out]).float()
    labels, weights = torch.from_numpy(images.labels[held_out]), torch.from_numpy(images.weights[held_out])
    expected = torch.nn.functional.cross_entropy(head.logits(features), labels, reduction='none')
    assert problem.loss(head, held_out) == pytest.approx(float((expected * weights).sum() / weights.sum()), rel=1e-4)
    next_strength = STRENGTHS[STRENGTHS.index(strength) + 1]
    assert losses[strength] < losses[next_strength]
    assert all(losses[strength] < losses[larger] for larger in STRENGTHS if larger > strength)


def test_images_of_weight_zero_do_not_count():
    images = drawn(5)
    weights = images.weights.copy()
    weights[150:] = 0
    zeroed = JudgedImages(images.values, images.rows, images.labels, images.num_classes, weights)
    heads = [LogisticRegression(zeroed, CPU).fit(positions, 0.03) for positions in (np.arange(150), np.arange(300))]
    assert torch.equal(heads[0].weight, heads[1].weight)
