"""The primitive of the softmax losses: an image's logit of its label against those of all other classes.

With own = z'_y and others = ln sum_{j != y} e^{z'_j} of adjusted logits z', the log-probability of the label is
ln p'_y = -ln(1 + e^{others - own}). A loss that changes its label's logit (a margin) changes `own` alone, and 1 - p'_y
keeps its digits however sure the model is. So every loss is plain arithmetic on numbers of the labels' shape, and what
costs, the pass over (batch, num_classes) and its gradient, is written once, here.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from lib.loss.logits import AddLogWeights, ClassConstants, LogitTransform
from lib.loss.sharded_logits import ClassSubset, Logits, gradient_buffer, loss_dtype, split

# Numbers that one block of rows may have on a CPU: 1 MB of float32, so that a block stays in the cache of a core while
# several passes go over it.
_BLOCK_NUMBERS = 2**18


class TargetRest(NamedTuple):
    """A label against the rest, in float32 (float64 for float64 logits).

    Attributes:
        own: the label's adjusted logit, of the labels' shape; -inf where its class was taken out.
        others: ln sum e^ of all other classes' adjusted logits, of the labels' shape; finfo.min if there are none.
        mean: of an image's scaled and shifted logits over all classes, (batch,) or (batch, 1); None unless asked for.
    """

    own: torch.Tensor
    others: torch.Tensor
    mean: torch.Tensor | None


def target_and_rest_logits(
    logits: Logits,
    labels: torch.Tensor,
    *,
    scale: ClassConstants | None = None,
    shift: ClassConstants | None = None,
    weigh: AddLogWeights | None = None,
    with_mean: bool = False,
) -> TargetRest:
    """Return each label's adjusted logit and the log-sum-exp of the others'.

    z'_j = scale_j z_j + shift_j, and for all classes but the labels + ln weight_j. A shift of -inf takes a class out.
    logits (batch, num_classes), in half precision too, or a part of them; labels int64 (batch,) or (batch, k); scale
    and shift: a class. Memory beyond the logits: one tensor of their size from forward to backward, and the gradient.
    Parts of the classes gather k + 1 numbers an image once (one more for the mean, k more for Block.own).

    Raises ValueError for the mean over all classes where some are drawn.
    """
    labels_of_images = labels if labels.ndim == 2 else labels[:, None]
    values, columns = split(logits)
    if with_mean and columns is not None and columns.are_drawn:
        raise ValueError('the mean over all classes is not known where some are drawn: no smoothing of labels')
    adjustment = LogitTransform(logits, labels_of_images, scale, shift, weigh)
    own, rest, mean = _OwnAndRest.apply(values, adjustment, with_mean, gradient_buffer(logits))
    others = _with_other_labels(own, rest, labels_of_images)
    if labels.ndim == 1:
        return TargetRest(own.squeeze(1), others.squeeze(1), mean)
    return TargetRest(own, others, mean[:, None] if with_mean else None)


def log_probability(own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return ln p_y = -ln(1 + e^{others - own})."""
    return F.logsigmoid(own - others)


def one_minus_p(own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return 1 - p_y, exact near p_y = 1."""
    return torch.sigmoid(others - own)


def other_label_mask(labels: torch.Tensor) -> torch.Tensor:
    """Return (batch, k, k) bool: whether label j of an image is one of the classes other than label i.

    Each class counts once, though it may be there twice (two images of one class, mixed).
    """
    same = labels[:, :, None] == labels[:, None, :]  # (batch, k, k)
    again = same.tril(diagonal=-1).any(dim=2)  # (batch, k): the class stood further left
    return ~same & ~again[:, None, :]


def row_blocks(tensor: torch.Tensor) -> Iterator[slice]:
    """Give slices of rows: a few at a time on a CPU; all at once elsewhere, where each launch costs."""
    num_rows, num_columns = tensor.shape
    step = num_rows if tensor.device.type != 'cpu' else max(1, _BLOCK_NUMBERS // max(1, num_columns))
    for start in range(0, num_rows, max(1, step)):
        yield slice(start, min(start + step, num_rows))


class _OwnAndRest(torch.autograd.Function):
    """Logits -> logits of the labels (batch, k), log-sum-exp of the classes that are no label, mean."""

    @staticmethod
    def forward(ctx, logits, adjustment, with_mean, shares):
        dtype = loss_dtype(logits)
        lowest = torch.finfo(dtype).min  # not -inf: a row of nothing else would be nan
        ctx.overwrites = shares is not None
        if shares is None:
            shares = logits.new_empty(logits.shape, dtype=dtype)  # softmax over the classes that are no label
        rest = logits.new_empty(len(logits), dtype=dtype)
        total = torch.empty_like(rest) if with_mean else None
        for rows in row_blocks(logits):
            block = logits[rows].to(dtype, copy=True)
            adjustment.scale_and_shift(block)
            if with_mean:
                total[rows] = block.sum(dim=1)
            adjustment.weigh(block, rows)
            adjustment.places.put(block, rows, lowest)
            top = block.amax(dim=1)
            if adjustment.columns is not None:
                # All of them may be taken out where no label is among them.
                block[:, 0].masked_fill_(top.isneginf(), lowest)
                top.clamp_min_(lowest)
            torch.softmax(block, dim=1, out=shares[rows])
            # The largest share is e^(top - rest), at least 1 / num_classes: no third pass for the sum.
            rest[rows] = top - shares[rows].amax(dim=1).log()
        own, whole_rest, mean = _joined(adjustment.own, rest, total, adjustment.columns, shares.shape[1])
        ctx.save_for_backward(shares, None if adjustment.columns is None else (rest - whole_rest).exp_())
        ctx.places, ctx.scale, ctx.logits_dtype = adjustment.places, adjustment.scale, logits.dtype
        ctx.num_classes = shares.shape[1] if adjustment.columns is None else adjustment.columns.num_classes
        return own, whole_rest, mean

    @staticmethod
    @once_differentiable
    def backward(ctx, of_own, of_rest, of_mean):
        shares, share_of_part = ctx.saved_tensors
        gradient = shares if ctx.overwrites else shares.new_empty(shares.shape, dtype=ctx.logits_dtype)
        if share_of_part is not None:
            of_rest = of_rest * share_of_part
        for rows in row_blocks(shares):
            block = gradient[rows] if gradient.dtype == shares.dtype else torch.empty_like(shares[rows])
            torch.mul(shares[rows], of_rest[rows, None], out=block)
            ctx.places.add(block, rows, of_own[rows])
            if of_mean is not None:
                block.add_(of_mean[rows, None] / ctx.num_classes)
            if ctx.scale is not None:
                block.mul_(ctx.scale)
            if block.dtype != gradient.dtype:
                gradient[rows] = block
        return gradient, None, None, None


def _joined(
    own: torch.Tensor, rest: torch.Tensor, total: torch.Tensor | None, columns: ClassSubset | None, num_columns: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return own (batch, k), rest (batch,) and the mean (batch,) over all parts of the classes, in one collective."""
    if columns is None:
        return own, rest, None if total is None else total / num_columns
    parts = columns.join(torch.column_stack([own, rest] if total is None else [own, rest, total]))
    k = own.shape[1]
    mean = None if total is None else parts[..., k + 1].sum(dim=0) / columns.num_classes
    return parts[..., :k].sum(dim=0), parts[..., k].logsumexp(dim=0), mean


def _with_other_labels(own: torch.Tensor, rest: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return (batch, k): to each label the rest and the image's other labels."""
    if labels.shape[1] == 1:
        return rest[:, None]
    lowest = torch.finfo(own.dtype).min  # as above: the gradient of a logsumexp of -inf alone is nan
    others = own[:, None, :].masked_fill(~other_label_mask(labels), lowest)  # (batch, k, k)
    rest = rest[:, None, None].expand(-1, labels.shape[1], 1)
    return torch.cat([others, rest], dim=2).logsumexp(dim=2)
