"""The images of all ranks in one batch, with gradients that find their way back."""

from collections.abc import Sequence

import torch
from torch.autograd.function import once_differentiable

from lib.distributed.process_group import ProcessGroup


def gather_rows(rows: torch.Tensor, sizes: Sequence[int], group: ProcessGroup) -> torch.Tensor:
    """Return the rows of all ranks, (sum(sizes), ...), in their order. Takes no gradient.

    Args:
        sizes: how many rows each rank has; known to all, so that nobody waits to ask.
    """
    most = max(sizes)
    if len(rows) < most:
        rows = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    gathered = group.all_gather(rows)  # (ranks, most, ...)
    if min(sizes) == most:
        return gathered.flatten(0, 1)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def gather_features(features: torch.Tensor, sizes: Sequence[int], group: ProcessGroup) -> torch.Tensor:
    """Return the features of all ranks for a classifier of which each holds a part.

    Backward adds up what the parts give. It is multiplied by the number of ranks, since the gradients of the backbone
    are averaged over them.
    """
    return _Gather.apply(features, tuple(sizes), group, True)


def gather_features_replicated(features: torch.Tensor, sizes: Sequence[int], group: ProcessGroup) -> torch.Tensor:
    """Return the features of all ranks for what each of them computes alike: backward takes this rank's gradient."""
    return _Gather.apply(features, tuple(sizes), group, False)


def own_rows(rows: torch.Tensor, sizes: Sequence[int], group: ProcessGroup) -> torch.Tensor:
    """Return this rank's rows of what was gathered."""
    start = sum(sizes[: group.rank])
    return rows[start : start + sizes[group.rank]]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, sizes, group, differs):
        ctx.sizes, ctx.group, ctx.differs = sizes, group, differs
        return gather_rows(rows, sizes, group)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        if ctx.differs:
            gradient = ctx.group.all_reduce(gradient)
        return own_rows(gradient, ctx.sizes, ctx.group) * ctx.group.world_size, None, None, None
