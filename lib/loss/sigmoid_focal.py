"""Focal loss, the sigmoid form."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from lib.loss.sharded_logits import LabelIndex, Logits, gradient_buffer, loss_dtype, split
from lib.loss.target_vs_rest import other_label_mask, row_blocks

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

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        labels_of_images = labels if labels.ndim == 2 else labels[:, None]
        values, columns = split(logits)
        places = LabelIndex(labels_of_images, columns)
        own, rest = _OwnAndRest.apply(values, places, columns, self.gamma, gradient_buffer(logits))
        losses = rest[:, None] + _as_other(-own, self.gamma)  # 1 - sigmoid(z) is sigmoid(-z)
        if labels_of_images.shape[1] > 1:
            others = _as_other(own, self.gamma)[:, None, :] * other_label_mask(labels_of_images)  # (batch, k, k)
            losses = losses + others.sum(dim=2)
        return losses.view_as(labels)


def _as_other(z: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return -s^gamma ln(1 - s), what a class that is not the label costs."""
    return torch.exp(gamma * F.logsigmoid(z)) * -F.logsigmoid(-z)


class _OwnAndRest(torch.autograd.Function):
    """Logits -> logits of the labels (batch, k), and the cost (batch,) of the classes that are no label."""

    @staticmethod
    def forward(ctx, logits, places, columns, gamma, slopes):
        dtype = loss_dtype(logits)
        ctx.overwrites = slopes is not None
        if slopes is None:
            slopes = logits.new_empty(logits.shape, dtype=dtype)
        own = places.take(logits).to(dtype)
        rest = logits.new_empty(len(logits), dtype=dtype)
        for rows in row_blocks(logits):
            block = logits[rows].to(dtype, copy=True)
            places.put(block, rows, torch.finfo(dtype).min)  # costs nothing there, and has no slope
            s = torch.sigmoid(block)
            costs = F.softplus(block)  # -ln(1 - s), and z - that is ln s
            powers = s.pow(gamma) if gamma in _FAST_POWERS else block.sub_(costs).mul_(gamma).exp_()  # s^gamma
            costs.mul_(powers)
            rest[rows] = costs.sum(dim=1)
            # The slope of s^gamma f, f = -ln(1 - s), over z: s^gamma (s + gamma (1 - s) f).
            torch.add(powers.sub_(costs, alpha=gamma).mul_(s), costs, alpha=gamma, out=slopes[rows])
        ctx.save_for_backward(slopes)
        ctx.places, ctx.logits_dtype = places, logits.dtype
        if columns is None:
            return own, rest
        parts = columns.join(torch.column_stack([own, rest]))
        return parts[..., :-1].sum(dim=0), parts[..., -1].sum(dim=0)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_own, of_rest):
        (slopes,) = ctx.saved_tensors
        gradient = slopes if ctx.overwrites else slopes.new_empty(slopes.shape, dtype=ctx.logits_dtype)
        for rows in row_blocks(slopes):
            block = gradient[rows] if gradient.dtype == slopes.dtype else torch.empty_like(slopes[rows])
            torch.mul(slopes[rows], of_rest[rows, None], out=block)
            ctx.places.add(block, rows, of_own[rows])
            if block.dtype != gradient.dtype:
                gradient[rows] = block
        return gradient, None, None, None, None
