"""Losses built from the config, with the defaults of each method."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib.builders.loss import LOSSES, build_loss
from lib.config.defaults import KEYS
from lib.config.yaml_text import as_node
from lib.loss.targets import Targets
from tests.defaults import DEFAULTS

COUNTS = np.array([500, 70, 1, 0, 12, 3])


def config(**options):
    chosen = {name.replace('__', '.'): value for name, value in options.items()}
    assert chosen.keys() <= KEYS.keys()
    return as_node({**DEFAULTS, **chosen})


@pytest.mark.parametrize('name', LOSSES)
def test_every_loss_is_built_and_has_gradients(name):
    loss = build_loss(config(LOSS__TYPE=name), COUNTS)
    torch.manual_seed(0)
    logits = torch.randn(8, 6, requires_grad=True)
    value = loss(logits, Targets(torch.tensor([0, 1, 2, 4, 5, 0, 1, 0])), torch.randn(8, 4))
    value.backward()
    assert value > 0
    assert logits.grad.isfinite().all()
    assert logits.grad.count_nonzero() > 0


def test_reweighting():
    logits, labels = torch.randn(8, 6), torch.tensor([0, 1, 2, 4, 5, 0, 1, 0])
    weights = 1 / torch.tensor(COUNTS).float()
    weights[3] = 0
    weights *= 5 / weights.sum()
    plain, weighted = F.cross_entropy(logits, labels), F.cross_entropy(logits, labels, weight=weights)
    mean = (F.cross_entropy(logits, labels, reduction='none') * weights[labels]).mean()
    cases = [
        ({}, 10, weighted),
        ({'LOSS__REWEIGHT_EPOCH': -1}, 3, plain),
        ({'LOSS__REWEIGHT_EPOCH': -1}, 4, weighted),
        ({'LOSS__REWEIGHT_EPOCH': 2}, 1, plain),
        ({'LOSS__REWEIGHT_EPOCH': 2}, 2, weighted),
        ({'LOSS__REDUCTION': 'mean'}, 0, mean),
    ]
    for options, epoch, expected in cases:
        loss = build_loss(config(LOSS__CLASS_WEIGHTS='inverse_frequency', TRAIN__MAX_EPOCH=5, **options), COUNTS)
        loss.set_epoch(epoch)
        torch.testing.assert_close(loss(logits, Targets(labels)), expected)


@pytest.mark.parametrize(('name', 'margin'), [('ldam', 0.5), ('arcface', 0.5), ('cosface', 0.35)])
def test_margins_apply_to_the_cosine_of_a_cosine_classifier(name, margin):
    logits, targets = torch.randn(4, 6), Targets(torch.tensor([2, 0, 1, 2]))
    linear = build_loss(config(LOSS__TYPE=name, LOSS__MARGIN=16 * margin if name != 'arcface' else margin), COUNTS)
    assert linear.loss(logits, targets.labels).isfinite().all()
    for classifier in ('FCNorm', 'cosine'):
        default = build_loss(config(LOSS__TYPE=name, MODEL__CLASSIFIER=classifier), COUNTS)
        explicit = build_loss(config(LOSS__TYPE=name, MODEL__CLASSIFIER=classifier, LOSS__MARGIN=margin), COUNTS)
        assert torch.equal(default(logits, targets), explicit(logits, targets))
        if name != 'arcface':
            torch.testing.assert_close(default(logits, targets), linear(logits, targets))


@pytest.mark.parametrize(('epoch', 'is_balanced'), [(7, False), (8, True), (9, True)])
def test_influence_weights_start_at_their_epoch(epoch, is_balanced):
    loss = build_loss(
        config(LOSS__TYPE='influence_balanced', LOSS__REWEIGHT_EPOCH=-1, TRAIN__MAX_EPOCH=10), np.full(6, 9)
    )
    loss.set_epoch(epoch)
    torch.manual_seed(0)
    logits, labels, features = torch.randn(8, 6), torch.tensor([0, 1, 2, 4, 5, 0, 1, 0]), torch.rand(8, 4)
    p = logits.softmax(dim=1)[torch.arange(8), labels]
    weights = 1000 / (2 * (1 - p) * features.sum(dim=1) + 1e-3) if is_balanced else 1.0
    torch.testing.assert_close(loss(logits, Targets(labels), features), (-p.log() * weights).mean())
