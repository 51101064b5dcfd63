"""The trial step that finds the largest micro-batch of a GPU, on the CPU."""

import numpy as np
import pytest
import torch

from lib.builders.device import _trial
from lib.builders.model import new_model
from lib.builders.objective import build_objective
from lib.config.yaml_text import as_node
from lib.runtime.device import pick_device
from lib.trainer.forward import TrainingForward
from tests.defaults import DEFAULTS


@pytest.mark.parametrize(('schedule', 'largest'), [((), 32), ((0, 24), 24), ((1, 48), 48)])
@pytest.mark.parametrize('memory_format', ['channels_last', 'contiguous'])
def test_a_trial_takes_images_of_the_largest_size_and_changes_nothing(schedule, largest, memory_format):
    changes = {'MODEL.BACKBONE': 'test_resnet', 'INPUT.SIZE': 32, 'INPUT.SIZE_SCHEDULE': schedule, 'NAME': 'x'}
    cfg, device = as_node(DEFAULTS | changes), pick_device('cpu', 'float32', memory_format)
    model = new_model(cfg, 3, device)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    _trial(cfg, TrainingForward(model), build_objective(cfg, np.ones(3, np.int64), model, device), device)(2)
    assert [images.shape for images in seen] == [(2, 3, largest, largest)]
    assert seen[0].is_contiguous(memory_format=device.memory_format)
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
