"""All-gather of the rows of all ranks, with gradients: for losses and classifiers over the global batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lib.distributed.process_group import ProcessGroup


def gather_rows(rows: torch.Tensor, sizes: Sequence[int], group: ProcessGroup) -> torch.Tensor:
    """Return the rows of all ranks, (sum(sizes), ...), ordered by rank. Without gradient.

    Args:
        sizes: number of rows of each rank, known on all ranks, so it need not be communicated.
    """
    most = max(sizes)
    if len(rows) < most:
        rows = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    gathered = group.all_gather(rows)  # (ranks, most, ...)
    if min(sizes) == most:
        return gathered.flatten(0, 1)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def gather_features(features: torch.Tensor, sizes: Sequence[int], group: ProcessGroup) -> torch.Tensor:
    """Return the features of all ranks, for a classifier that is sharded over the ranks.

    Backward sums the gradients of all ranks' shards. The sum is multiplied by the number of ranks, because DDP averages
    the gradients of the backbone over the ranks.
    """
    return _Gather.apply(features, tuple(sizes), group, True)


def gather_features_replicated(features: torch.Tensor, sizes: Sequence[int], group: ProcessGroup) -> torch.Tensor:
    """Return the features of all ranks, for a computation that is the same on every rank.

    Backward uses the gradient of this rank only, multiplied by the number of ranks, because DDP averages.
    """
    return _Gather.apply(features, tuple(sizes), group, False)


def local_rows(rows: torch.Tensor, sizes: Sequence[int], group: ProcessGroup) -> torch.Tensor:
    """Return this rank's part of gathered rows."""
    start = sum(sizes[: group.rank])
    return rows[start : start + sizes[group.rank]]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, sizes: tuple[int, ...], group: ProcessGroup, sum_gradients: bool
    ) -> torch.Tensor:
        ctx.sizes, ctx.group, ctx.sum_gradients = sizes, group, sum_gradients
        return gather_rows(rows, sizes, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        if ctx.sum_gradients:
            gradient = ctx.group.all_reduce(gradient)
        return local_rows(gradient, ctx.sizes, ctx.group) * ctx.group.world_size, None, None, None
