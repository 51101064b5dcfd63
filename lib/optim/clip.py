"""A limit on the norm of all gradients together."""

from collections.abc import Iterable

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lib.distributed.process_group import ALONE, Ranks


def clip_gradients(
    parameters: Iterable[torch.nn.Parameter],
    max_norm: float,
    *,
    sharded: Iterable[torch.nn.Parameter] = (),
    ranks: Ranks = ALONE,
) -> torch.Tensor:
    """Scale all gradients by min(1, max_norm / (norm + 1e-6)) (Pascanu et al., ICML 2013; torch's clip_grad_norm_).

    Does not wait for the device. Gradients that are not finite make the norm so, and the gradients with it.

    Args:
        parameters: of which every rank holds the same gradients; those among `sharded` are passed over.
        max_norm: above 0.
        sharded: of which each rank holds other rows; they count with those of all ranks. Every rank has to give some
            or every rank none.

    Returns:
        The L2 norm of all gradients before, a scalar on their device; the same on every rank.
    """
    sharded = list(sharded)
    held_in_parts = set(sharded)
    common = [parameter for parameter in parameters if parameter not in held_in_parts]
    norm = get_total_norm(_gradients(common))
    if sharded:
        rows = get_total_norm(_gradients(sharded)).to(sharded[0].device)
        norm = torch.sqrt(norm.to(rows.device).square() + ranks.sum(rows.square()))
    clip_grads_with_norm_([*common, *sharded], max_norm, norm)
    return norm


def _gradients(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
