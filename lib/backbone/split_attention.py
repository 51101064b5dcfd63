"""Split attention with fewer passes over the activations, in their memory format."""

from typing import Any

import torch
from timm.layers import SplitAttn
from torch import nn
from torch.autograd.function import once_differentiable


def use_fast_split_attention(backbone: nn.Module) -> nn.Module:
    """Replace timm's split attention modules in `backbone` by FastSplitAttention; return `backbone`."""
    for module in backbone.modules():
        if type(module) is SplitAttn:
            module.__class__ = FastSplitAttention
    return backbone


class FastSplitAttention(SplitAttn):
    """Split attention (ResNeSt: Zhang et al., CVPRW 2022, section 3.1): (batch, C_in, H, W) -> (batch, C, H, W).

    The C channels of each split r are weighted, out = sum_r a_r * x_r, by a softmax over the splits that is computed
    from the spatial means of sum_r x_r. timm's module returns contiguous activations for any input, so a channels_last
    network is permuted twice in every block; it also saves the products a_r * x_r, and adds gradients of the size of
    the activations. Parameters, and results up to rounding, are the same.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act0(self.drop(self.bn0(self.conv(x))))  # (batch, radix * C, H, W)
        means = _Means.apply(x) if torch.is_grad_enabled() else x.mean((2, 3))
        means = means.unflatten(1, (self.radix, -1)).sum(dim=1)[:, :, None, None]  # (batch, C, 1, 1)
        weights = self.fc2(self.act1(self.bn1(self.fc1(means))))
        weights = self.rsoftmax(weights).reshape(x.shape[0], -1, 1, 1).to(x.dtype)  # (batch, radix * C, 1, 1)
        return _Weigh.apply(x, weights, self.radix) if torch.is_grad_enabled() else _weigh(x, weights, self.radix)


def _weigh(x: torch.Tensor, weights: torch.Tensor, radix: int) -> torch.Tensor:
    (first, *others), (weight, *rest) = x.chunk(radix, dim=1), weights.chunk(radix, dim=1)
    out = first * weight
    for split, weight in zip(others, rest, strict=True):
        out = out.addcmul_(split, weight)
    return out


class _Weigh(torch.autograd.Function):
    """_weigh, with the gradients of all splits written into one tensor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weights: torch.Tensor, radix: int) -> torch.Tensor:
        ctx.save_for_backward(x, weights)
        ctx.radix = radix
        return _weigh(x, weights, radix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weights = ctx.saved_tensors
        grad_x, grad_weights = torch.empty_like(x), torch.empty_like(weights)
        splits = (tensor.chunk(ctx.radix, dim=1) for tensor in (x, weights, grad_x, grad_weights))
        for split, weight, grad_split, grad_weight in zip(*splits, strict=True):
            torch.mul(grad, weight, out=grad_split)
            grad_weight.copy_((grad * split).sum((2, 3), keepdim=True))
        return grad_x, grad_weights, None


class _Means(torch.autograd.Function):
    """Spatial means, (batch, channels, H, W) -> (batch, channels). The gradient is returned as an expanded view."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.shape = x.shape
        return x.mean((2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        height, width = ctx.shape[2:]
        return (grad / (height * width))[:, :, None, None].expand(ctx.shape)
