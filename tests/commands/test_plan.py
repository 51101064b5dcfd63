"""Extrapolated costs of a large classifier against the measured costs."""

import numpy as np
import pytest
import torch
from torch import nn

from lib.builders.loss import build_loss
from lib.commands.plan import StepCosts
from lib.config.defaults import KEYS
from lib.config.yaml_text import as_node
from lib.plan.costs import chunked_classifier_cost


@pytest.mark.long
@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
@pytest.mark.parametrize(('classifier', 'fraction'), [('FC', 1.0), ('FCNorm', 1.0), ('lws', 0.5)])
def test_large_classifier_is_extrapolated(classifier, fraction, dtype):
    cfg = as_node(
        {name: key.default for name, key in KEYS.items()}
        | {'NAME': 'x', 'MODEL.BACKBONE': 'res32_cifar', 'INPUT.SIZE': 32, 'MODEL.CLASSIFIER': classifier}
    )
    costs = StepCosts(cfg, 10, dtype)
    images, rows, chunk = 100, 1_500_000, 8
    sampled = round(rows * fraction)
    found = costs.chunked_classifier(images, rows, chunk, sampled)
    model = costs._recognizer(nn.Identity(), rows)
    loss = build_loss(cfg, np.ones(sampled, dtype=np.int64))
    whole = chunked_classifier_cost(model, loss, costs.num_features, images, chunk=chunk, num_sampled=sampled)
    assert (found.parameters, found.gradients) == (whole.parameters, whole.gradients)
    assert found.peak == pytest.approx(whole.peak, rel=0.01)
    assert found.retained == pytest.approx(whole.retained, rel=0.01)
