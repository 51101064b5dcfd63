"""Scaling of the loss, so that float16 gradients do not vanish.

A limit on the norm of all gradients together.
"""

from collections.abc import Iterable

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup


def clip_gradients(
    parameters: Iterable[torch.nn.Parameter],
    max_norm: float,
    *,
    sharded: Iterable[torch.nn.Parameter] = (),
    group: ProcessGroup = SINGLE_PROCESS,
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
        norm = torch.sqrt(norm.to(rows.device).square() + group.all_reduce(rows.square()))
    clip_grads_with_norm_([*common, *sharded], max_norm, norm)
    return norm


def _gradients(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def make_scaler(device: torch.device, *, enabled: bool, group: ProcessGroup = SINGLE_PROCESS) -> torch.amp.GradScaler:
    """Return a scaler of the loss (Micikevicius et al., ICLR 2018, section 3.2); a disabled one leaves all as it is.

    After a step with gradients that are not finite the weights stay and the scale is halved. `step` does not wait for
    the device where the optimiser was created with fused=True: torch then hands it the flag as a tensor
    (`_step_supports_amp_scaling`), and its kernel passes the step over by itself. With any other optimiser, `step` has
    to read the flag on the host.

    Args:
        ranks: those that hold different gradients (a sharded classifier), and must agree on which step is passed over.
            With gradients that are equal on all of them (DDP) leave it ALONE.
    """
    if group.world_size == 1:
        return torch.amp.GradScaler(device.type, enabled=enabled)
    return _AgreedScaler(device.type, enabled=enabled, group=group)


class _AgreedScaler(torch.amp.GradScaler):
    """A scaler whose ranks pass a step over if one of them has to.

    torch's ShardedGradScaler does not fit fused optimisers: it adds the ranks' flags up, and a fused kernel passes a
    step over at exactly 1, so that it would take one that is bad on two ranks; and without an earlier `unscale_` its
    `step` does not ask the other ranks.
    """

    def __init__(self, device: str, *, enabled: bool, group: ProcessGroup) -> None:
        super().__init__(device, enabled=enabled)
        self._group = group

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: torch.Tensor, found_inf: torch.Tensor, allow_fp16: bool
    ) -> dict[torch.device, torch.Tensor]:
        # Both ways to the flags, `unscale_` and a fused `step` without it, go through here.
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        if not found:  # a rank without any gradient takes part all the same
            found[found_inf.device] = found_inf
        return {device: self._group.all_reduce(flag).clamp_(max=1) for device, flag in found.items()}
