"""Backbones by name."""

import pytest
import timm
import torch

from lib.backbone.create import ALIASES, available, changes_with_size, create_backbone
from lib.errors import UserError


@pytest.mark.parametrize(
    ('name', 'image_size', 'num_features'),
    [
        ('res50', 64, 2048),
        ('resnest50', 64, 2048),
        ('res32_cifar', 32, 64),
        ('resnet18.a1_in1k', 64, 512),
        ('mobilenetv3_small_050', 64, 1024),  # its num_features in timm is 288
        ('vit_tiny_patch16_224', 112, 192),  # a fixed size, overridden
    ],
)
@pytest.mark.long
def test_num_features_is_the_width_of_the_output(name, image_size, num_features):
    backbone = create_backbone(name, image_size=image_size)
    assert backbone.training
    assert backbone.num_features == num_features
    assert backbone.eval()(torch.zeros(2, 3, image_size, image_size)).shape == (2, num_features)


def test_every_alias_is_a_timm_name():
    assert set(ALIASES.values()) <= set(timm.list_models())
    assert {*ALIASES, 'res32_cifar', 'resnest50d'} <= set(available())


def test_res32_is_the_network_of_the_papers():
    backbone = create_backbone('res32_cifar', image_size=32)
    # 0.46 million parameters (He et al., table 6) with the classifier of ten classes.
    assert sum(p.numel() for p in backbone.parameters()) + 64 * 10 + 10 == 464_154
    assert sum(isinstance(m, torch.nn.Conv2d) for m in backbone.modules()) == 31
    kernels = backbone.layer3[1].conv1.weight
    assert kernels.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_option_a_shortcut_subsamples_and_pads():
    block = create_backbone('res32_cifar', image_size=32).layer2[0].eval()
    x = torch.rand(1, 16, 8, 8)
    with torch.no_grad():
        block.bn2.weight.zero_()  # leaves only the shortcut
        out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].count_nonzero() == out[:, 24:].count_nonzero() == 0


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('resnest5', 'did you mean resnest50'),
        ('resnet50.a1_in1', 'did you mean resnet50.a1_in1k'),
        ('hf-hub:timm/resnet50.a1_in1k', 'set MODEL.PRETRAINED timm'),
        ('local-dir:/etc', 'unknown'),
        ('/etc/passwd', 'unknown'),
        ('', 'unknown'),
    ],
)
def test_wrong_name_is_one_error_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        create_backbone(name, image_size=64)
    assert '\n' not in str(caught.value)


def test_unsupported_size_names_the_key():
    with pytest.raises(UserError, match=r'INPUT.SIZE 112'):
        create_backbone('botnet26t_256', image_size=112)


@pytest.mark.parametrize(
    ('name', 'changes'),
    [
        ('res32_cifar', False),
        ('resnet18', False),
        ('test_vit', True),
        ('test_vit.r160_in1k', True),
        ('coat_tiny', True),
    ],
)
def test_which_backbones_are_built_for_one_size(name, changes):
    assert changes_with_size(name) == changes


def test_timm_gives_its_function_that_adapts_weights():
    """It is passed to timm's loader only, a private function, which another version of timm may rename."""
    adapt = create_backbone('test_vit', image_size=32).adapt_weights
    assert adapt.__module__ == 'timm.models.vision_transformer'


@pytest.mark.long
def test_backbone_is_the_same_with_and_without_pretrained_weights():
    """timm builds fbnetc_100 with another epsilon for its published weights; a checkpoint of it must have it, too."""
    backbone = create_backbone('fbnetc_100', image_size=32)
    assert {module.eps for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {1e-3}
