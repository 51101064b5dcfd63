"""Which classes a step compares with, when there are too many for all (Partial FC: An et al., CVPR 2022)."""

import math

import torch


def sample_rows(labels: torch.Tensor, classes: range, share: float, seed: int) -> torch.Tensor:
    """Return the rows of the classes that a step compares with: those of its labels, and others at random.

    ceil(share * len(classes)) of them, or more where the labels alone might be more. Other classes are all as likely.
    A pure function of its arguments (and of the kind of device): parts of the classes need different seeds, or their
    draws would be alike. Nothing is read back from the device.

    Args:
        labels: (batch,) or (batch, k) int64; classes that are not held do not matter.
        classes: those held, a row each.
        share: of them to compare with, above 0.

    Returns:
        (num_rows,) int64, rising; row r is class classes.start + r.
    """
    num_held = len(classes)
    num_rows = max(math.ceil(share * num_held), min(num_held, labels.numel()))
    generator = torch.Generator(labels.device).manual_seed(seed)
    # A score in [0, 1) for every class, and one more place for labels that are not among them.
    scores = torch.rand(num_held + 1, generator=generator, device=labels.device)
    rows = labels.flatten() - classes.start
    scores[rows.where((rows >= 0) & (rows < num_held), num_held)] = 2.0
    return scores[:num_held].topk(num_rows, sorted=False).indices.sort().values


def take_rows(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return tensor[rows] for rows (num_rows,) int64 without repetition.

    Since none comes twice, the gradient is a copy into zeros; that of indexing adds up, one row after the other.
    """
    return _Taken.apply(tensor, rows)


class _Taken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, rows):
        ctx.save_for_backward(rows)
        ctx.shape = tensor.shape
        return tensor.index_select(0, rows)

    @staticmethod
    def backward(ctx, of_taken):
        (rows,) = ctx.saved_tensors
        return of_taken.new_zeros(ctx.shape).index_copy_(0, rows, of_taken), None
