"""Remix: lambda of the labels against the paper's three cases, and limiting cases that are mixup."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from lib.trainer.mixing.base import MixDraws
from lib.trainer.mixing.mixup import Mixup
from lib.trainer.mixing.remix import Remix
from tests.oracles import mixing as oracle
from tests.trainer.mixing.batches import image_lam, random_batch


def remix_of(counts, kappa, tau, seed=0):
    return Remix(MixDraws(seed, 1.0), torch.as_tensor(counts), kappa, tau)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize(('kappa', 'tau'), [(3.0, 0.5), (1.0, 0.5), (1.0, 0.9), (2.5, 0.9), (10.0, 0.0), (3.0, 1.0)])
def test_lam_of_the_paper(seed, kappa, tau):
    random = np.random.default_rng(seed)
    # Small counts reach the borders of the cases, large ones are those of the largest classes.
    counts = np.concatenate([random.integers(1, 12, 20), random.integers(1, 10**7, 4)])
    labels = torch.from_numpy(random.integers(0, len(counts), 400))
    images = torch.zeros(400, 1, 1, 1)
    found = image_lam(remix_of(counts, kappa, tau, seed)(images, labels, epoch=0, first_slot=0))
    lam = image_lam(Mixup(MixDraws(seed, 1.0))(images, labels, epoch=0, first_slot=0))
    expected = [
        oracle.remix_lam(
            int(counts[labels[index]]),
            int(counts[labels[oracle.partner(index, 400)]]),
            share,
            Fraction(kappa),
            tau,
        )
        for index, share in enumerate(lam.tolist())
    ]
    assert found.tolist() == expected
    if (kappa, tau) == (3.0, 0.5):
        assert {0.0, 1.0} < set(expected), 'all three cases come up'


@pytest.mark.parametrize(('kappa', 'tau'), [(1e9, 0.5), (3.0, 0.0)])
def test_limits_that_are_mixup(kappa, tau):
    images, labels = random_batch(0, 64)
    counts = torch.tensor([500, 100, 40, 9, 3, 1])
    found = remix_of(counts, kappa, tau)(images, labels, epoch=0, first_slot=0)
    expected = Mixup(MixDraws(0, 1.0))(images, labels, epoch=0, first_slot=0)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.targets.labels, expected.targets.labels)
    assert torch.equal(found.targets.lam, expected.targets.lam)


def test_equal_counts_are_mixup():
    images, labels = random_batch(1, 64)
    found = remix_of([7] * 6, 3.0, 0.5)(images, labels, epoch=0, first_slot=0)
    expected = Mixup(MixDraws(0, 1.0))(images, labels, epoch=0, first_slot=0)
    assert torch.equal(found.targets.lam, expected.targets.lam)


def test_lam_of_the_rarer_label_never_falls():
    images, labels = random_batch(2, 512, side=1)
    counts = torch.tensor([500, 100, 40, 9, 3, 1])
    found = remix_of(counts, 3.0, 0.5)(images, labels, epoch=0, first_slot=0).targets
    plain = Mixup(MixDraws(0, 1.0))(images, labels, epoch=0, first_slot=0).targets
    sizes = counts[found.labels]
    own_is_rarer = sizes[:, 0] < sizes[:, 1]
    change = found.lam[:, 0] - plain.lam[:, 0]
    assert (change[own_is_rarer] >= 0).all()
    assert (change[~own_is_rarer] <= 0).all()
    assert change.abs().max() > 0.4
