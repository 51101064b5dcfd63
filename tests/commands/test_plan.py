"""What the planner finds by a few chunks of some classes, against all of them."""

import numpy as np
import pytest
import torch
from torch import nn

from lib.builders.loss import build_loss
from lib.commands.plan import StepCosts
from lib.config.defaults import KEYS
from lib.config.yaml_text import as_node
from lib.plan.head import lean_head_cost


@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
@pytest.mark.parametrize(('classifier', 'share'), [('FC', 1.0), ('FCNorm', 1.0), ('lws', 0.5)])
def test_a_large_head_is_extrapolated(classifier, share, dtype):
    cfg = as_node(
        {name: key.default for name, key in KEYS.items()}
        | {'NAME': 'x', 'MODEL.BACKBONE': 'res32_cifar', 'INPUT.SIZE': 32, 'MODEL.CLASSIFIER': classifier}
    )
    costs = StepCosts(cfg, 10, dtype)
    images, rows, chunk = 100, 1_500_000, 8
    compared = round(rows * share)
    found = costs.lean_head(images, rows, chunk, compared)
    model = costs._recognizer(nn.Identity(), rows)
    loss = build_loss(cfg, np.ones(compared, dtype=np.int64))
    whole = lean_head_cost(model, loss, costs.num_features, images, chunk=chunk, num_compared=compared)
    assert (found.parameters, found.gradients) == (whole.parameters, whole.gradients)
    assert found.peak == pytest.approx(whole.peak, rel=0.01)
    assert found.kept == pytest.approx(whole.kept, rel=0.01)
