"""Sampled softmax over a fraction of the classes, for too many classes (Partial FC: An et al., CVPR 2022)."""

import math
from typing import Any

import torch


def sample_rows(labels: torch.Tensor, classes: range, fraction: float, seed: int) -> torch.Tensor:
    """Return the classifier rows that a step uses: those of its labels, and others uniformly at random.

    ceil(fraction * len(classes)) rows, or more where the labels may need more. A pure function of its arguments (and of
    the device type): shards need different seeds, or their samples would be alike. Does not wait for the device.

    Args:
        labels: (batch,) or (batch, k) int64; classes of other shards are ignored.
        classes: the classes of this shard, one row each.
        fraction: fraction of the rows to use, above 0.

    Returns:
        (num_rows,) int64, ascending; row r is class classes.start + r.
    """
    num_classes = len(classes)
    num_rows = max(math.ceil(fraction * num_classes), min(num_classes, labels.numel()))
    generator = torch.Generator(labels.device).manual_seed(seed)
    # A score in [0, 1) for every class, and one more entry for labels of other shards.
    scores = torch.rand(num_classes + 1, generator=generator, device=labels.device)
    rows = labels.flatten() - classes.start
    scores[rows.where((rows >= 0) & (rows < num_classes), num_classes)] = 2.0
    return scores[:num_classes].topk(num_rows, sorted=False).indices.sort().values


def take_rows(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return tensor[rows] for rows (num_rows,) int64 without duplicates.

    Without duplicates the gradient is one copy into zeros; the gradient of indexing accumulates row by row.
    """
    return _TakeRows.apply(tensor, rows)


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = tensor.shape
        return tensor.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (rows,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).index_copy_(0, rows, gradient), None
