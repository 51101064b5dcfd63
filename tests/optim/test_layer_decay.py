"""Layer-wise learning rate decay and the parameter groups."""

import pytest
import timm
import torch
from torch import nn

from lib.backbone.create import create_backbone
from lib.errors import UserError
from lib.model import Recognizer
from lib.optim.optimizer import create_optimizer, layer_lr_scales, parameter_groups

# A parameter of the stem, of the first and of the last block, and the number of blocks.
BACKBONES = {
    'resnet18': ('conv1.weight', 'layer1.0.conv1.weight', 'layer4.1.bn2.bias', 8),
    'resnest50': ('conv1.0.weight', 'layer1.0.conv1.weight', 'layer4.2.conv3.weight', 16),
    'vit_tiny_patch16_224': ('patch_embed.proj.weight', 'blocks.0.norm1.weight', 'blocks.11.mlp.fc2.weight', 12),
    'convnext_atto': ('stem.0.weight', 'stages.0.blocks.0.gamma', 'stages.3.blocks.1.mlp.fc2.weight', 12),
    'res32_cifar': ('conv1.weight', 'layer1.0.conv1.weight', 'layer3.4.bn2.bias', 15),
}


def backbone_of(name: str) -> nn.Module:
    if name == 'res32_cifar':
        return create_backbone(name, image_size=32)
    with torch.device('meta'):
        return timm.create_model({'resnest50': 'resnest50d'}.get(name, name), num_classes=0)


@pytest.mark.parametrize('name', BACKBONES)
def test_blocks_are_counted_from_the_classifier(name):
    stem, first, last, num_blocks = BACKBONES[name]
    backbone = backbone_of(name)
    scales = layer_lr_scales(backbone, 0.5, name=name)
    assert list(scales) == [key for key, _ in backbone.named_parameters()]
    assert scales[last] == 0.5
    assert scales[first] == 0.5**num_blocks
    assert scales[stem] == 0.5 ** (num_blocks + 1)
    assert set(scales.values()) - {1.0} == {0.5**depth for depth in range(1, num_blocks + 2)}


def test_parameters_of_the_classifier_group_have_factor_1():
    scales = layer_lr_scales(backbone_of('convnext_atto'), 0.5, name='convnext_atto')
    assert [key for key, scale in scales.items() if scale == 1] == ['head.norm.weight', 'head.norm.bias']


@pytest.mark.parametrize('seed', range(2))
def test_blocks_of_resnet32_follow_its_names(seed):
    torch.manual_seed(seed)
    scales = layer_lr_scales(create_backbone('res32_cifar', image_size=32), 0.9, name='res32_cifar')
    for key, scale in scales.items():
        stage, _, rest = key.partition('.')
        blocks_before = 0 if stage in ('conv1', 'bn1') else 5 * (int(stage[-1]) - 1) + int(rest[0]) + 1
        assert scale == pytest.approx(0.9 ** (16 - blocks_before))


@pytest.mark.parametrize('backbone', [nn.Linear(2, 2), timm.create_model('pit_ti_224', num_classes=0)])
def test_backbone_without_blocks_raises(backbone):
    with pytest.raises(UserError, match=r'^OPTIMIZER.LAYER_DECAY is 0.7, but MODEL.BACKBONE mine .*LAYER_DECAY 1'):
        layer_lr_scales(backbone, 0.7, name='mine')


def test_matcher_with_a_single_group_raises():
    backbone = nn.Linear(2, 2)
    backbone.group_matcher = lambda coarse: {}
    with pytest.raises(UserError, match='defines no blocks'):
        layer_lr_scales(backbone, 0.7, name='mine')


def names_by_group(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        ({key: value for key, value in group.items() if key != 'params'}, [names[id(p)] for p in group['params']])
        for group in groups
    ]


def test_each_parameter_is_in_one_group_with_its_factor_and_decay():
    torch.manual_seed(0)
    model = Recognizer(create_backbone('res32_cifar', image_size=32), nn.Linear(64, 5))
    model.backbone.layer1[2].requires_grad_(False)
    scales = layer_lr_scales(model.backbone, 0.9, name='res32_cifar')
    lr_scales = {f'backbone.{name}': scale for name, scale in scales.items()}
    groups = parameter_groups(model, weight_decay=0.1, decay_norm_and_bias=False, lr_scales=lr_scales)
    grouped = []
    for options, names in names_by_group(model, groups):
        grouped += names
        for name in names:
            assert options['lr_scale'] == (1.0 if name.startswith('classifier') else scales[name[len('backbone.') :]])
            assert options['weight_decay'] == (0.1 if model.get_parameter(name).ndim > 1 else 0.0)
    assert sorted(grouped) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert len(groups) == 2 * (
        1 + 15 + 1 - 1
    )  # classifier, blocks, stem, minus the frozen block; with and without decay
    assert names_by_group(model, groups)[0][1] == ['classifier.weight']


@pytest.mark.parametrize('decay_norm_and_bias', [False, True])
def test_without_factors_there_are_two_groups(decay_norm_and_bias):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    groups = parameter_groups(model, weight_decay=0.1, decay_norm_and_bias=decay_norm_and_bias)
    vectors = ['0.bias', '1.weight', '1.bias', '2.bias']
    if decay_norm_and_bias:
        expected = [({'weight_decay': 0.1}, [name for name, _ in model.named_parameters()])]
    else:
        expected = [({'weight_decay': 0.1}, ['0.weight', '2.weight']), ({'weight_decay': 0.0}, vectors)]
    assert names_by_group(model, groups) == expected


def test_steps_are_multiplied_by_the_factor():
    """As in the training step: lr = schedule(step) * lr_scale."""
    layers = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    optimizer = create_optimizer(layers, kind='sgd', lr=1.0, momentum=0.0, lr_scales={'0.weight': 0.25})
    before = [layer.weight.item() for layer in layers]
    for layer in layers:
        layer.weight.grad = torch.ones(1, 1)
    for group in optimizer.param_groups:
        group['lr'] = 0.1 * group['lr_scale']
    optimizer.step()
    steps = [start - layer.weight.item() for start, layer in zip(before, layers, strict=True)]
    assert steps == pytest.approx([0.025, 0.1])
