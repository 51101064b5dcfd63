"""MODEL.POOL: pooling of feature maps and tokens against formulas, and the backbones that have none."""

import pytest
import torch
from torch import nn

from lib.backbone.create import create_backbone, measure_width
from lib.backbone.pooling import GeneralizedMean, set_pooling, with_pooling_of
from lib.errors import UserError

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def pooled(name, kind, size=64):
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=size)
    own = {key: value.clone() for key, value in backbone.state_dict().items()}
    set_pooling(backbone, kind, name=name)
    state = backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in own.items())
    return backbone.eval(), sorted(state.keys() - own.keys())


def test_generalized_mean_equals_the_formula():
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.2
    layer = GeneralizedMean((2, 3), keepdim=False).double()
    expected = [[sum(max(v, 1e-6) ** 3 for v in c.flatten().tolist()) / 20 for c in image] for image in x]
    torch.testing.assert_close(layer(x), torch.tensor(expected, dtype=torch.float64) ** (1 / 3), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(layer, x.requires_grad_())
    nn.init.ones_(layer.gem_exponent)
    torch.testing.assert_close(layer(x), x.clamp_min(1e-6).mean(dim=(2, 3)))
    nn.init.constant_(layer.gem_exponent, 200.0)
    torch.testing.assert_close(layer(x), x.amax(dim=(2, 3)), rtol=0.02, atol=0)


@pytest.mark.parametrize('name', ['resnet18', 'tf_efficientnet_lite0'])
def test_feature_maps_are_pooled_as_chosen(name):
    for kind, reduce in (
        ('avg', lambda x: x.mean(dim=(2, 3))),
        ('max', lambda x: x.amax(dim=(2, 3))),
        ('gem', lambda x: x.clamp_min(1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)),
    ):
        backbone, new = pooled(name, kind)
        assert new == (['global_pool.gem_exponent'] if kind == 'gem' else [])
        with torch.no_grad():
            found, expected = backbone(IMAGES), reduce(backbone.forward_features(IMAGES))
        torch.testing.assert_close(found, expected)
        assert measure_width(backbone, name, 64) == backbone.num_features


@pytest.mark.slow
@pytest.mark.parametrize('name', ['swin_tiny_patch4_window7_224', 'convnext_atto', 'mobilenetv3_small_050', 'nfnet_l0'])
def test_other_layouts_are_pooled(name):
    size = 224
    for kind in ('avg', 'max', 'gem'):
        backbone, new = pooled(name, kind, size)
        assert measure_width(backbone, name, size) == backbone.num_features
        assert len(new) == (kind == 'gem')


def test_tokens_are_pooled_as_chosen():
    name, images = 'vit_tiny_patch16_224', torch.rand(1, 3, 224, 224)
    for kind, reduce in (
        ('avg', lambda x: x[:, 1:].mean(dim=1)),
        ('max', lambda x: x[:, 1:].amax(dim=1)),
        ('cls', lambda x: x[:, 0]),
    ):
        backbone, new = pooled(name, kind, 224)
        assert not new
        with torch.no_grad():
            torch.testing.assert_close(backbone(images), reduce(backbone.forward_features(images)))


@pytest.mark.parametrize(
    ('name', 'kind', 'allowed'),
    [
        ('resnet18', 'cls', 'pools by avg, max, gem only'),
        ('vit_tiny_patch16_224', 'gem', 'pools by avg, max, cls only'),
        ('res32_cifar', 'gem', 'has no pooling that could be replaced'),
        ('deit_tiny_distilled_patch16_224', 'avg', 'has no pooling that could be replaced'),
    ],
)
def test_a_backbone_without_such_pooling_is_an_error(name, kind, allowed):
    backbone = create_backbone(name, image_size=32 if name == 'res32_cifar' else 224)
    with pytest.raises(UserError, match=f'MODEL.POOL is {kind}, but MODEL.BACKBONE .{name}. {allowed}'):
        set_pooling(backbone, kind, name=name)


def test_a_state_is_completed_for_another_pooling():
    (gem, _), (avg, _) = pooled('resnet18', 'gem'), pooled('resnet18', 'avg')
    nn.init.constant_(gem.get_parameter('global_pool.gem_exponent'), 2.5)
    assert with_pooling_of(gem, avg.state_dict()).keys() == gem.state_dict().keys()
    assert with_pooling_of(avg, gem.state_dict()).keys() == avg.state_dict().keys()
    assert with_pooling_of(pooled('resnet18', 'gem')[0], gem.state_dict())['global_pool.gem_exponent'] == 2.5
