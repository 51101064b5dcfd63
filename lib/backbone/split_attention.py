"""Split attention in fewer passes over the activations, which stay as they lie in memory."""

import torch
from timm.layers import SplitAttn
from torch import nn
from torch.autograd.function import once_differentiable


def lighten_split_attention(backbone: nn.Module) -> nn.Module:
    """Let timm's split attention modules in `backbone` compute as LightSplitAttention does; return `backbone`."""
    for module in backbone.modules():
        if type(module) is SplitAttn:
            module.__class__ = LightSplitAttention
    return backbone


class LightSplitAttention(SplitAttn):
    """Split attention (ResNeSt: Zhang et al., CVPRW 2022, section 3.1): (batch, C_in, H, W) -> (batch, C, H, W).

    A softmax over the splits r weighs the C channels of each, out = sum_r a_r * x_r, by the means of sum_r x_r over the
    image. timm's module hands on contiguous activations whatever comes in, so a channels_last network is turned round
    twice in every block; it also keeps the products a_r * x_r, and adds up gradients of whole activations. Parameters
    and results (up to rounding) are its own.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act0(self.drop(self.bn0(self.conv(x))))  # (batch, radix * C, H, W)
        means = _Means.apply(x) if torch.is_grad_enabled() else x.mean((2, 3))
        means = means.unflatten(1, (self.radix, -1)).sum(dim=1)[:, :, None, None]  # (batch, C, 1, 1)
        weights = self.fc2(self.act1(self.bn1(self.fc1(means))))
        weights = self.rsoftmax(weights).reshape(len(x), -1, 1, 1).to(x.dtype)  # (batch, radix * C, 1, 1)
        return _Weigh.apply(x, weights, self.radix) if torch.is_grad_enabled() else _weigh(x, weights, self.radix)


def _weigh(x: torch.Tensor, weights: torch.Tensor, radix: int) -> torch.Tensor:
    (first, *others), (weight, *rest) = x.chunk(radix, dim=1), weights.chunk(radix, dim=1)
    out = first * weight
    for split, weight in zip(others, rest, strict=True):
        out = out.addcmul_(split, weight)
    return out


class _Weigh(torch.autograd.Function):
    """_weigh; its gradient is written into one tensor, that of all splits."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weights: torch.Tensor, radix: int) -> torch.Tensor:
        ctx.save_for_backward(x, weights)
        ctx.radix = radix
        return _weigh(x, weights, radix)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weights = ctx.saved_tensors
        grad_x, grad_weights = torch.empty_like(x), torch.empty_like(weights)
        parts = (tensor.chunk(ctx.radix, dim=1) for tensor in (x, weights, grad_x, grad_weights))
        for split, weight, grad_split, grad_weight in zip(*parts, strict=True):
            torch.mul(grad, weight, out=grad_split)
            grad_weight.copy_((grad * split).sum((2, 3), keepdim=True))
        return grad_x, grad_weights, None


class _Means(torch.autograd.Function):
    """Means over the image, (batch, channels, H, W) -> (batch, channels). The gradient is handed on unexpanded."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.shape = x.shape
        return x.mean((2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        height, width = ctx.shape[2:]
        return (grad / (height * width))[:, :, None, None].expand(ctx.shape)
