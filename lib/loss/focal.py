"""Focal loss in two forms: over the softmax, and with one sigmoid per class."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from lib.loss.sharded_logits import ClassSubset, LabelIndex, Logits, gradient_buffer, loss_dtype, values_and_subset
from lib.loss.target_vs_rest import (
    block_memory,
    log_probability,
    one_minus_p,
    other_label_mask,
    row_blocks,
    target_and_rest_logits,
)

_FAST_POWERS = (0.5, 1.0, 2.0, 3.0)  # pow uses products and roots for these, which are faster than exp


class Focal(nn.Module):
    """Focal loss, L = -(1 - p_y)^gamma ln p_y (Lin et al., ICCV 2017, eq. 4), with p the softmax.

    The paper has one sigmoid per class (SigmoidFocal); this is the form for one label per image, without alpha.
    Logits (batch, num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape. gamma 0 is cross
    entropy.
    """

    uses_features = False

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        target, rest, _ = target_and_rest_logits(logits, labels)
        # Clamped above zero, where the slope of a power below 1 is infinite and 0 * inf would be nan.
        misses = one_minus_p(target, rest).clamp_min(torch.finfo(target.dtype).tiny)
        return -(misses**self.gamma) * log_probability(target, rest)


class SigmoidFocal(nn.Module):
    """Focal loss with one sigmoid per class, L = -(1 - s_y)^gamma ln s_y - sum_{j != y} s_j^gamma ln(1 - s_j)
    (Lin et al., ICCV 2017, eq. 4), s = sigmoid(z).

    Summed over the classes, as in the code of class-balanced loss (Cui et al., CVPR 2019), which multiplies all terms
    of an image by its label's class weight; without the alpha of detectors. gamma 0 is the sum of binary cross
    entropies. Logits (batch, num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape.
    """

    uses_features = False

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        label_matrix = labels if labels.ndim == 2 else labels[:, None]  # (batch, k)
        values, subset = values_and_subset(logits)
        label_index = LabelIndex(label_matrix, subset)
        target, non_labels = _TargetAndNegatives.apply(values, label_index, subset, self.gamma, gradient_buffer(logits))
        losses = non_labels[:, None] + _negative_loss(-target, self.gamma)  # 1 - sigmoid(z) is sigmoid(-z)
        if label_matrix.shape[1] > 1:
            other_labels = _negative_loss(target, self.gamma)[:, None, :] * other_label_mask(label_matrix)
            losses = losses + other_labels.sum(dim=2)  # (batch, k, k) -> (batch, k)
        return losses.view_as(labels)


def _negative_loss(z: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return -s^gamma ln(1 - s), the loss of a class that is not the label."""
    return torch.exp(gamma * F.logsigmoid(z)) * -F.logsigmoid(-z)


def _map_constants_of_softplus() -> None:
    """Make softplus fast on AVX-512: six times on AMD's Zen 4.

    Its log1p ends with a masked load of a constant, for arguments of -0 only. While that constant's page of the library
    is not mapped into the process, every such load, though all its lanes are masked out, takes the processor's slow
    path for suppressed page faults; other operators may or may not have read from the page. An argument of -0 reads it.
    """
    torch.log1p(torch.tensor(-0.0, device='cpu'))


class _TargetAndNegatives(torch.autograd.Function):
    """Logits -> the labels' logits (batch, k), and the summed loss (batch,) of the classes that are no label."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        label_index: LabelIndex,
        subset: ClassSubset | None,
        gamma: float,
        slopes: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = loss_dtype(logits)
        ctx.overwrites = slopes is not None
        if slopes is None:
            slopes = logits.new_empty(logits.shape, dtype=dtype)
        target = label_index.gather(logits).to(dtype)
        non_labels = logits.new_empty(len(logits), dtype=dtype)
        _map_constants_of_softplus()
        memory = block_memory(logits, dtype, 2)
        for rows in row_blocks(logits):
            block, s = memory[:, : rows.stop - rows.start]
            block.copy_(logits[rows])
            label_index.fill_(block, rows, torch.finfo(dtype).min)  # loss 0 and slope 0 there
            torch.sigmoid(block, out=s)
            losses = torch.ops.aten.softplus.out(block, out=slopes[rows])  # -ln(1 - s); z minus it is ln s
            powers = torch.pow(s, gamma, out=block) if gamma in _FAST_POWERS else block.sub_(losses).mul_(gamma).exp_()
            losses.mul_(powers)  # powers: s^gamma
            non_labels[rows] = losses.sum(dim=1)
            # The slope of s^gamma f, f = -ln(1 - s), over z: s^gamma (s + (1 - s) gamma f).
            losses.mul_(gamma).lerp_(powers, s)
        ctx.save_for_backward(slopes)
        ctx.label_index, ctx.logits_dtype = label_index, logits.dtype
        if subset is None:
            return target, non_labels
        shards = subset.all_gather(torch.column_stack([target, non_labels]))  # (num_shards, batch, k + 1)
        return shards[..., :-1].sum(dim=0), shards[..., -1].sum(dim=0)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_target: torch.Tensor, grad_non_labels: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        gradient = slopes if ctx.overwrites else slopes.new_empty(slopes.shape, dtype=ctx.logits_dtype)
        for rows in row_blocks(slopes):
            is_exact = gradient.dtype == slopes.dtype
            block = gradient[rows] if is_exact else torch.empty_like(slopes[rows])
            torch.mul(slopes[rows], grad_non_labels[rows, None], out=block)
            ctx.label_index.add_(block, rows, grad_target[rows])
            if not is_exact:
                gradient[rows] = block
        return gradient, None, None, None, None
