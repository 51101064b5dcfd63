"""Fast split attention against that of timm."""

import copy

import pytest
import timm
import torch
from timm.layers import SplitAttn

from lib.backbone.create import create_backbone
from lib.backbone.split_attention import FastSplitAttention, use_fast_split_attention


def two(radix, groups, dtype=torch.float64):
    """Return the module of timm and ours with equal weights, in train mode and channels_last."""
    torch.manual_seed(radix * 10 + groups)
    theirs = SplitAttn(16, 8, groups=groups, radix=radix, norm_layer=torch.nn.BatchNorm2d)
    theirs = theirs.to(dtype, memory_format=torch.channels_last)
    ours = use_fast_split_attention(copy.deepcopy(theirs))
    assert type(ours) is FastSplitAttention
    return theirs, ours


def images(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(3, 16, 5, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)


def results(module, x):
    """Return the output and the gradients of the input and all parameters, for a random upstream gradient."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = module(x)
    torch.manual_seed(2)
    (out * torch.randn(out.shape, dtype=out.dtype)).sum().backward()
    return {'out': out.detach(), 'x': x.grad, **{name: value.grad for name, value in module.named_parameters()}}


@pytest.mark.parametrize(('radix', 'groups'), [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2)])
def test_output_and_gradients_equal_timm(radix, groups):
    theirs, ours = two(radix, groups)
    expected, found = results(theirs, images()), results(ours, images())
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: name + text)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images()), theirs.eval()(images()), rtol=1e-10, atol=1e-12)


def test_activations_stay_channels_last():
    theirs, ours = two(2, 1)
    assert ours(images()).is_contiguous(memory_format=torch.channels_last)
    assert not theirs(images()).is_contiguous(memory_format=torch.channels_last), (
        'timm supports channels_last now: FastSplitAttention can be removed'
    )
    with torch.no_grad():
        assert ours(images()).is_contiguous(memory_format=torch.channels_last)


def test_autocast_is_as_accurate_as_timm():
    theirs, ours = two(2, 1, torch.float32)
    expected = results(copy.deepcopy(theirs).double(), images())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        coarse, found = results(theirs, images(torch.float32)), results(ours, images(torch.float32))
    assert found['out'].dtype == torch.bfloat16
    for name, value in expected.items():
        error, allowed = (found[name] - value).abs().max(), (coarse[name] - value).abs().max()
        assert error <= 2 * allowed + 1e-6, name


def test_backbone_uses_it_with_the_same_names_and_features():
    torch.manual_seed(0)
    theirs = timm.create_model('resnest14d', num_classes=0)
    ours = create_backbone('resnest14d', image_size=32)
    assert sum(isinstance(module, FastSplitAttention) for module in ours.modules()) == 4
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
