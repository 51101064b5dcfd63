"""BBN: the weights of its two samplers over the run."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib.loss.weighted import WeightedLoss
from lib.trainer.mixing.bbn import BBN
from tests.trainer.mixing.batches import random_batch


@pytest.mark.parametrize(('epoch', 'alpha'), [(0, 1.0), (1, 0.99), (5, 0.75), (9, 0.19), (10, 0.0), (15, 0.0)])
def test_weights_fall_by_the_parabola(epoch, alpha):
    images, labels = random_batch(0, 6)
    mixed = BBN(10)(images, labels, epoch=epoch, first_slot=12)
    assert mixed.images is images
    assert mixed.targets.labels is labels
    assert mixed.targets.lam is None
    np.testing.assert_allclose(mixed.targets.weights.numpy(), [alpha, 1 - alpha] * 3, atol=1e-7)
    assert (mixed.targets.weights.view(-1, 2).sum(dim=1) == 1).all()


class PlainCrossEntropy(torch.nn.Module):
    """Cross entropy of each label, without reduction."""

    uses_features = False

    def forward(self, logits, labels):
        return F.cross_entropy(logits, labels, reduction='none')


@pytest.mark.parametrize('weighted_mean', [True, False])
@pytest.mark.parametrize('epoch', [0, 3, 9])
def test_the_loss_of_the_paper(epoch, weighted_mean):
    """a L_c + (1 - a) L_r, each the mean over its own images."""
    images, labels = random_batch(1, 16)
    logits = torch.randn(16, 6, generator=torch.Generator().manual_seed(2))
    targets = BBN(10)(images, labels, epoch=epoch, first_slot=0).targets
    found = WeightedLoss(PlainCrossEntropy(), torch.ones(6), weighted_mean=weighted_mean)(logits, targets)
    alpha = 1 - (epoch / 10) ** 2
    usual, rare = F.cross_entropy(logits[::2], labels[::2]), F.cross_entropy(logits[1::2], labels[1::2])
    torch.testing.assert_close(found, alpha * usual + (1 - alpha) * rare)
