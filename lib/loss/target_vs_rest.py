"""The core of the softmax losses: the logit of the label against the log-sum-exp of all other classes.

With target = z'_y and rest = ln sum_{j != y} e^{z'_j} of transformed logits z', the log-probability of the label is
ln p'_y = -ln(1 + e^{rest - target}). A loss that changes the label's logit (a margin) changes `target` only, and
1 - p'_y stays accurate when p'_y is close to 1. So every loss is arithmetic on tensors of the labels' shape, and the
expensive part, the pass over (batch, num_classes) and its gradient, is written once, here.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from lib.loss.logits import AddLogWeights, ClassConstants, LogitTransform
from lib.loss.sharded_logits import ClassSubset, Logits, gradient_buffer, loss_dtype, values_and_subset

# Elements of a block of rows on a CPU, per thread: 1 MB of float32, so that each thread's part of a block stays in a
# core's cache for several passes.
_BLOCK_ELEMENTS = 2**18


class TargetRest(NamedTuple):
    """The label's logit and the rest, in float32 (float64 for float64 logits).

    Attributes:
        target: the transformed logit of the label, of the labels' shape; -inf where its class was taken out.
        rest: ln sum e^z' over all other classes, of the labels' shape; finfo.min if there are none.
        mean: the mean scaled and shifted logit over all classes, (batch,) or (batch, 1); None unless requested.
    """

    target: torch.Tensor
    rest: torch.Tensor
    mean: torch.Tensor | None


def target_and_rest_logits(
    logits: Logits,
    labels: torch.Tensor,
    *,
    scale: ClassConstants | None = None,
    shift: ClassConstants | None = None,
    add_log_weights: AddLogWeights | None = None,
    with_mean: bool = False,
) -> TargetRest:
    """Return each label's transformed logit and the log-sum-exp of the other classes' transformed logits.

    z'_j = scale_j z_j + shift_j, and + ln weight_j for all classes but the labels. A shift of -inf takes a class out.
    Memory beyond the logits: one tensor of their size from forward to backward, and the gradient. Shards gather k + 1
    numbers per image once (one more for the mean, k more for LogitBlock.target_logits).

    Args:
        logits: (batch, num_classes), half precision included, or a shard of them.
        labels: int64 (batch,) or (batch, k).
        scale, shift: per class.

    Raises:
        ValueError: the mean over all classes is requested for sampled classes.
    """
    label_matrix = labels if labels.ndim == 2 else labels[:, None]  # (batch, k)
    values, subset = values_and_subset(logits)
    if with_mean and subset is not None and subset.is_sampled:
        raise ValueError('the mean over all classes is undefined for sampled classes: turn label smoothing off')
    transform = LogitTransform(logits, label_matrix, scale, shift, add_log_weights)
    target, non_labels, mean = _TargetAndNonLabels.apply(values, transform, with_mean, gradient_buffer(logits))
    rest = _with_other_labels(target, non_labels, label_matrix)
    if labels.ndim == 1:
        return TargetRest(target.squeeze(1), rest.squeeze(1), mean)
    return TargetRest(target, rest, mean[:, None] if with_mean else None)


def log_probability(target: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Return ln p_y = -ln(1 + e^{rest - target})."""
    return F.logsigmoid(target - rest)


def one_minus_p(target: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Return 1 - p_y, accurate near p_y = 1."""
    return torch.sigmoid(rest - target)


def other_label_mask(labels: torch.Tensor) -> torch.Tensor:
    """Return a bool mask (batch, k, k): label j of an image is one of the classes other than label i.

    A class that an image has twice (two mixed images of one class) counts once.
    """
    same = labels[:, :, None] == labels[:, None, :]  # (batch, k, k)
    is_repeat = same.tril(diagonal=-1).any(dim=2)  # (batch, k): an earlier label has the same class
    return ~same & ~is_repeat[:, None, :]


def row_blocks(tensor: torch.Tensor) -> Iterator[slice]:
    """Yield slices of rows: cache-sized blocks on a CPU; all rows elsewhere, where every kernel launch costs time."""
    step = _rows_per_block(tensor)
    for start in range(0, len(tensor), step):
        yield slice(start, min(start + step, len(tensor)))


def block_memory(tensor: torch.Tensor, dtype: torch.dtype, num_tensors: int) -> torch.Tensor:
    """Return memory for tensors of the largest of `row_blocks`, (num_tensors, rows, num_columns), which blocks share.

    On a CPU, the page faults of new memory for every block take longer than a pass over it.
    """
    return tensor.new_empty((num_tensors, min(_rows_per_block(tensor), len(tensor)), tensor.shape[1]), dtype=dtype)


def _rows_per_block(tensor: torch.Tensor) -> int:
    num_rows, num_columns = tensor.shape
    if tensor.device.type != 'cpu':
        return max(1, num_rows)
    return max(1, torch.get_num_threads() * _BLOCK_ELEMENTS // max(1, num_columns))


class _TargetAndNonLabels(torch.autograd.Function):
    """Logits -> the labels' logits (batch, k), log-sum-exp of the classes that are no label (batch,), mean (batch,)."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, transform: LogitTransform, with_mean: bool, probabilities: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        dtype = loss_dtype(logits)
        lowest = torch.finfo(dtype).min  # not -inf: a row of nothing else would be nan
        ctx.overwrites = probabilities is not None
        if probabilities is None:
            probabilities = logits.new_empty(logits.shape, dtype=dtype)  # softmax over the classes that are no label
        non_labels = logits.new_empty(len(logits), dtype=dtype)
        total = torch.empty_like(non_labels) if with_mean else None
        memory = block_memory(logits, dtype, 1)
        for rows in row_blocks(logits):
            block = memory[0, : rows.stop - rows.start].copy_(logits[rows])
            transform.scale_and_shift_(block)
            if total is not None:
                total[rows] = block.sum(dim=1)
            transform.add_log_weights_(block, rows)
            transform.label_index.fill_(block, rows, lowest)
            top = block.amax(dim=1)
            if transform.subset is not None:
                # All columns may be taken out if no label is among them.
                block[:, 0].masked_fill_(top.isneginf(), lowest)
                top.clamp_min_(lowest)
            torch.softmax(block, dim=1, out=probabilities[rows])
            # The largest probability is e^(top - non_labels), at least 1 / num_classes: no third pass for the sum.
            non_labels[rows] = top - probabilities[rows].amax(dim=1).log()
        target, all_non_labels, mean = _joined(
            transform.target, non_labels, total, transform.subset, probabilities.shape[1]
        )
        fraction_of_shard = None if transform.subset is None else (non_labels - all_non_labels).exp_()
        ctx.save_for_backward(probabilities, fraction_of_shard)
        ctx.label_index, ctx.scale, ctx.logits_dtype = transform.label_index, transform.scale, logits.dtype
        ctx.num_classes = probabilities.shape[1] if transform.subset is None else transform.subset.num_classes
        return target, all_non_labels, mean

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_target: torch.Tensor, grad_non_labels: torch.Tensor, grad_mean: torch.Tensor | None
    ) -> tuple[torch.Tensor, None, None, None]:
        probabilities, fraction_of_shard = ctx.saved_tensors
        gradient = (
            probabilities if ctx.overwrites else probabilities.new_empty(probabilities.shape, dtype=ctx.logits_dtype)
        )
        if fraction_of_shard is not None:
            grad_non_labels = grad_non_labels * fraction_of_shard
        for rows in row_blocks(probabilities):
            is_exact = gradient.dtype == probabilities.dtype
            block = gradient[rows] if is_exact else torch.empty_like(probabilities[rows])
            torch.mul(probabilities[rows], grad_non_labels[rows, None], out=block)
            ctx.label_index.add_(block, rows, grad_target[rows])
            if grad_mean is not None:
                block.add_(grad_mean[rows, None] / ctx.num_classes)
            if ctx.scale is not None:
                block.mul_(ctx.scale)
            if not is_exact:
                gradient[rows] = block
        return gradient, None, None, None


def _joined(
    target: torch.Tensor,
    non_labels: torch.Tensor,
    total: torch.Tensor | None,
    subset: ClassSubset | None,
    num_columns: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return target (batch, k), non_labels (batch,) and mean (batch,) over all shards, in one collective."""
    if subset is None:
        return target, non_labels, None if total is None else total / num_columns
    columns = [target, non_labels] if total is None else [target, non_labels, total]
    shards = subset.all_gather(torch.column_stack(columns))  # (num_shards, batch, k + 1 or k + 2)
    k = target.shape[1]
    mean = None if total is None else shards[..., k + 1].sum(dim=0) / subset.num_classes
    return shards[..., :k].sum(dim=0), shards[..., k].logsumexp(dim=0), mean


def _with_other_labels(target: torch.Tensor, non_labels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return (batch, k): for each label the log-sum-exp of non_labels and the image's other labels."""
    if labels.shape[1] == 1:
        return non_labels[:, None]
    lowest = torch.finfo(target.dtype).min  # as above: the gradient of a logsumexp of only -inf is nan
    other_labels = target[:, None, :].masked_fill(~other_label_mask(labels), lowest)  # (batch, k, k)
    non_labels = non_labels[:, None, None].expand(-1, labels.shape[1], 1)
    return torch.cat([other_labels, non_labels], dim=2).logsumexp(dim=2)
