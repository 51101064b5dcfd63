"""Focal loss, the sigmoid form."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from lib.loss.others import counted_pairs, exact_dtype, row_blocks

_FAST_POWERS = (0.5, 1.0, 2.0, 3.0)  # products and roots, which take less time than exp


class SigmoidFocal(nn.Module):
    """Focal loss with one sigmoid a class, L = -(1 - s_y)^gamma ln s_y - sum_{j != y} s_j^gamma ln(1 - s_j)
    (Lin et al., ICCV 2017, eq. 4), s = sigmoid(z).

    Summed over the classes, as in the code of class-balanced loss (Cui et al., CVPR 2019), which weighs all terms of an
    image by its label's class weight; without the alpha of detectors. gamma 0 is the sum of binary cross entropies.
    Logits (batch, num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape.
    """

    uses_features = False

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        columns = labels if labels.ndim == 2 else labels[:, None]
        own, rest = _OwnAndRest.apply(logits, columns, self.gamma)
        losses = rest[:, None] + _as_other(-own, self.gamma)  # 1 - sigmoid(z) is sigmoid(-z)
        if columns.shape[1] > 1:
            others = _as_other(own, self.gamma)[:, None, :] * counted_pairs(columns)  # (batch, k, k)
            losses = losses + others.sum(dim=2)
        return losses.view_as(labels)


def _as_other(z: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return -s^gamma ln(1 - s), what a class that is not the label costs."""
    return torch.exp(gamma * F.logsigmoid(z)) * -F.logsigmoid(-z)


class _OwnAndRest(torch.autograd.Function):
    """(logits, labels (batch, k)) -> logits of the labels, and the cost of the classes that are no label."""

    @staticmethod
    def forward(ctx, logits, labels, gamma):
        dtype = exact_dtype(logits)
        slopes = logits.new_empty(logits.shape, dtype=dtype)
        own = logits.new_empty(labels.shape, dtype=dtype)
        rest = logits.new_empty(len(logits), dtype=dtype)
        for rows in row_blocks(logits):
            block = logits[rows].to(dtype, copy=True)
            own[rows] = block.gather(1, labels[rows])
            block.scatter_(1, labels[rows], torch.finfo(dtype).min)  # costs nothing there, and has no slope
            s = torch.sigmoid(block)
            costs = F.softplus(block)  # -ln(1 - s), and z - that is ln s
            powers = s.pow(gamma) if gamma in _FAST_POWERS else block.sub_(costs).mul_(gamma).exp_()  # s^gamma
            costs.mul_(powers)
            rest[rows] = costs.sum(dim=1)
            # The slope of s^gamma f, f = -ln(1 - s), over z: s^gamma (s + gamma (1 - s) f).
            torch.add(powers.sub_(costs, alpha=gamma).mul_(s), costs, alpha=gamma, out=slopes[rows])
        ctx.save_for_backward(slopes, labels)
        ctx.logits_dtype = logits.dtype
        return own, rest

    @staticmethod
    @once_differentiable
    def backward(ctx, of_own, of_rest):
        slopes, labels = ctx.saved_tensors
        gradient = slopes.new_empty(slopes.shape, dtype=ctx.logits_dtype)
        for rows in row_blocks(slopes):
            block = gradient[rows] if gradient.dtype == slopes.dtype else torch.empty_like(slopes[rows])
            torch.mul(slopes[rows], of_rest[rows, None], out=block).scatter_add_(1, labels[rows], of_own[rows])
            if block.dtype != gradient.dtype:
                gradient[rows] = block
        return gradient, None, None
