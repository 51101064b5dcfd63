"""OPTIMIZER -> parameter groups."""

import pytest
import torch

from lib.builders.model import new_model
from lib.builders.optim import build_optimizer
from lib.config.yaml_text import as_node
from lib.errors import UserError
from lib.optim.gradients import create_grad_scaler
from lib.runtime.device import pick_device
from tests.defaults import DEFAULTS

SMALL = {'MODEL.BACKBONE': 'res32_cifar', 'INPUT.SIZE': 32, 'NAME': 'x'}
DEVICE = pick_device('cpu', 'float32')


def config(**changes):
    changes = {name.replace('__', '.'): value for name, value in changes.items()}
    return as_node(DEFAULTS | SMALL | changes)


def scale_of(optimizer, parameter):
    (scale,) = {
        group['lr_scale'] for group in optimizer.param_groups if any(parameter is one for one in group['params'])
    }
    return scale


def test_layers_decay_from_the_classifier_down():
    cfg = config(OPTIMIZER__LAYER_DECAY=0.8, LOSS__AUXILIARY='balanced_contrastive')
    model = new_model(cfg, 3, DEVICE)
    optimizer = build_optimizer(cfg, model)
    for parameter in (model.classifier.weight, *model.projector.parameters()):
        assert scale_of(optimizer, parameter) == 1
    assert scale_of(optimizer, model.backbone.layer3[4].conv2.weight) == 0.8
    assert scale_of(optimizer, model.backbone.conv1.weight) == 0.8**16


def test_without_layer_decay_groups_have_no_scale():
    cfg = config(OPTIMIZER__DECAY_NORM_AND_BIAS=False)
    optimizer = build_optimizer(cfg, new_model(cfg, 3, DEVICE))
    assert len(optimizer.param_groups) == 2
    assert not any('lr_scale' in group for group in optimizer.param_groups)


def test_a_backbone_without_blocks_is_named():
    cfg = config(OPTIMIZER__LAYER_DECAY=0.8, MODEL__BACKBONE='pit_ti_224', INPUT__SIZE=224)
    with pytest.raises(UserError, match=r'LAYER_DECAY is 0.8, but MODEL.BACKBONE pit_ti_224'):
        build_optimizer(cfg, new_model(cfg, 3, DEVICE))


def test_row_norms_are_limited_with_fused_steps_and_a_scaler():
    cfg = config(OPTIMIZER__MAX_NORM=0.1, OPTIMIZER__LR=0.5, OPTIMIZER__LAYER_DECAY=0.8)
    model = new_model(cfg, 3, DEVICE)
    optimizer, scaler = build_optimizer(cfg, model), create_grad_scaler(DEVICE.main, enabled=True)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (model.classifier.weight.norm(dim=1) > 0.1).any()
    before = model.backbone.conv1.weight.detach().clone()
    scaler.scale(model(images)[:, 0].mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2**16
    assert not torch.equal(model.backbone.conv1.weight, before)
    assert model.classifier.weight.norm(dim=1).max() <= 0.1 * (1 + 1e-6)
