"""Averages over views and models against the obvious loop, and mixture weights against an optimizer."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lib.backbone.resnet32 import ResNet32
from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import LinearClassifier
from lib.dataset.pipeline import Batch
from lib.inference.engine import EagerEngine
from lib.inference.ensemble import EnsembleMember, combine, mean_logits, mixture_weights
from lib.model import Recognizer

NUM_CLASSES = 5


def model(kind, seed):
    torch.manual_seed(seed)
    classifier = (
        CosineClassifier(64, NUM_CLASSES, scale=16.0) if kind == 'cosine' else LinearClassifier(64, NUM_CLASSES)
    )
    return Recognizer(ResNet32(), classifier).eval()


def view(seed, symmetric=False):
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    if symmetric:
        images = torch.cat([images[..., :8], images[..., :8].flip(-1)], dim=-1)
    return Batch(images, torch.arange(4), torch.ones(4, dtype=torch.bool), torch.arange(4))


def alone(member, images):
    with torch.inference_mode():
        return member.engine.model(images)


@torch.inference_mode()
def together(members, views, average='logits', weights=None):
    return combine(members, views, weights or [1 / len(members)] * len(members), average)


@pytest.mark.parametrize('seed', range(2), ids='seed{}'.format)
@pytest.mark.parametrize('kind', ['linear', 'cosine'])
def test_flip_is_the_mean_of_two_passes(kind, seed):
    member, one = EnsembleMember(EagerEngine(model(kind, seed)), None, flip=True), view(seed)
    found = together([member], [[one]])
    both = [one.images, torch.flip(one.images, dims=[3])]
    torch.testing.assert_close(found.logits, torch.stack([alone(member, images) for images in both]).mean(0))
    assert torch.equal(found.plain_logits, alone(member, one.images))
    with torch.inference_mode():
        features = torch.stack([member.engine.features(images) for images in both]).mean(0)
    torch.testing.assert_close(found.features, features)


def test_flip_leaves_symmetric_images_as_they_are():
    member, one = EnsembleMember(EagerEngine(model('linear', 1)), None, flip=True), view(1, symmetric=True)
    assert torch.equal(together([member], [[one]]).logits, alone(member, one.images))


@pytest.mark.parametrize('average', ['logits', 'probabilities'])
def test_one_model_is_that_model(average):
    member, one = EnsembleMember(EagerEngine(model('linear', 3)), None), view(3)
    assert torch.equal(together([member], [[one]], average).logits, alone(member, one.images))


@pytest.mark.parametrize('average', ['logits', 'probabilities'])
def test_views_and_models_are_averaged_model_by_model(average):
    """A model with three views has no more weight than a model with one."""
    members = [
        EnsembleMember(EagerEngine(model('linear', 4)), None),
        EnsembleMember(EagerEngine(model('cosine', 5)), None),
    ]
    views, weights = [[view(1), view(2), view(3)], [view(4)]], [0.3, 0.7]
    found = together(members, views, average, weights).logits.double().softmax(dim=1)
    expected = []
    for member, its_views in zip(members, views, strict=True):
        logits = torch.stack([alone(member, one.images) for one in its_views]).double()
        expected.append(logits.mean(0) if average == 'logits' else logits.softmax(dim=2).mean(0))
    mean = weights[0] * expected[0] + weights[1] * expected[1]
    torch.testing.assert_close(found, mean.softmax(dim=1) if average == 'logits' else mean, rtol=1e-4, atol=1e-6)


def test_a_plain_view_that_is_not_averaged_is_only_compared_with():
    member = EnsembleMember(EagerEngine(model('linear', 6)), None, flip=True, averages_plain=False)
    views = [view(1), view(2)]
    found = together([member], [views])
    both = [views[1].images, views[1].images.flip(-1)]
    torch.testing.assert_close(found.logits, torch.stack([alone(member, images) for images in both]).mean(0))
    assert torch.equal(found.plain_logits, alone(member, views[0].images))


def test_probabilities_of_zero_stay_finite():
    sure = torch.tensor([[300.0, 0.0, 0.0]])
    assert mean_logits([sure, sure], 'probabilities').isfinite().all()


@pytest.mark.parametrize('seed', range(5), ids='seed{}'.format)
def test_weights_are_the_most_likely_ones(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.beta(rng.uniform(0.5, 3, 3), 1, (200, 3))
    found = mixture_weights(probabilities)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()

    def loss(free):
        weights = np.append(free, 1 - free.sum())
        return -np.log(np.maximum(probabilities @ weights, 1e-300)).sum()

    best = minimize(
        loss, np.full(2, 1 / 3), method='SLSQP', bounds=[(0, 1)] * 2,
        constraints={'type': 'ineq', 'fun': lambda free: 1 - free.sum()}, options={'ftol': 1e-12, 'maxiter': 500},
    )  # fmt: skip
    assert loss(found[:2]) <= best.fun + 1e-4


def test_weights_of_a_useless_model_vanish():
    rng = np.random.default_rng(0)
    good = rng.uniform(0.5, 1, 300)
    found = mixture_weights(np.stack([good, good * 0.01], axis=1))
    assert found[1] < 1e-6
    assert mixture_weights(np.zeros((4, 2))).tolist() == [0.5, 0.5], 'no information'
