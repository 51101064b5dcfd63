"""WeightedLoss against the weighted mean of F.cross_entropy, and its start epoch."""

import pytest
import torch
import torch.nn.functional as F

from lib.loss.balanced_softmax import BalancedSoftmax
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from tests.loss.cases import CASES, COUNTS, assert_same, fast, problem, slow, value_and_gradients

ALL_COUNTS = torch.tensor([500, 70, 1, 40, 12, 3])
WEIGHTS = torch.tensor([0.1, 0.5, 3.0, 0.25, 1.0, 1.5])


@pytest.mark.parametrize('seed', range(3))
def test_weighted_mean_equals_torch(seed):
    logits, _, targets = problem(seed)
    loss = WeightedLoss(CrossEntropy(), ALL_COUNTS, WEIGHTS)
    found = value_and_gradients(lambda z, h: loss(z, targets), logits)
    expected = value_and_gradients(lambda z, h: F.cross_entropy(z, targets.labels, weight=WEIGHTS.double()), logits)
    assert_same(found, expected)


@pytest.mark.parametrize('weighted_mean', [True, False])
@pytest.mark.parametrize('k', [0, 2])
@pytest.mark.parametrize('seed', range(2))
def test_class_weights_equal_the_oracle(seed, k, weighted_mean):
    some = problem(seed, k=k)
    weights = [0.5, 1.0, 2.0, 8.0, 0.25, 4.0]
    case = CASES['label_smoothing']
    found = fast(case, some, class_weights=torch.tensor(weights), weighted_mean=weighted_mean)
    assert_same(found, slow(case, some, class_weights=weights, weighted_mean=weighted_mean))


def test_coefficient_1_equals_a_single_label():
    logits, _, targets = problem(seed=3)
    others = torch.randint(6, (len(logits),))
    mixed = Targets(torch.stack([others, targets.labels], dim=1), torch.tensor([0.0, 1.0]).expand(len(logits), 2))
    loss = WeightedLoss(CrossEntropy(), ALL_COUNTS)
    found = value_and_gradients(lambda z, h: loss(z, mixed), logits)
    assert_same(found, value_and_gradients(lambda z, h: F.cross_entropy(z, targets.labels), logits))


def test_class_weights_apply_from_their_epoch_on():
    logits, _, targets = problem(seed=4)
    loss = WeightedLoss(CrossEntropy(), ALL_COUNTS, WEIGHTS, reweight_from_epoch=3)
    plain = F.cross_entropy(logits, targets.labels)
    weighted = F.cross_entropy(logits, targets.labels, weight=WEIGHTS.double())
    for epoch, expected in [(0, plain), (2, plain), (3, weighted), (4, weighted), (9, weighted), (1, plain)]:
        loss.set_epoch(epoch)
        torch.testing.assert_close(loss(logits, targets), expected, rtol=1e-6, atol=0)
    # Without set_epoch the epoch is 0.
    torch.testing.assert_close(WeightedLoss(CrossEntropy(), ALL_COUNTS, WEIGHTS)(logits, targets), weighted)


def test_loss_and_gradient_are_0_for_a_batch_of_empty_classes():
    labels = torch.full((2,), COUNTS.index(0))
    counts = torch.tensor(COUNTS)
    loss = WeightedLoss(BalancedSoftmax(counts), counts)
    value, gradient, _ = value_and_gradients(lambda z, h: loss(z, Targets(labels)), torch.randn(2, 6))
    assert value == 0
    assert gradient.count_nonzero() == 0
