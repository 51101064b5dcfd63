"""Gradient clipping by the global norm, and loss scaling for float16 gradients, with sharded parameters."""

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

    Does not wait for the device. With non-finite gradients the norm and all gradients become non-finite.

    Args:
        parameters: replicated parameters, with the same gradients on every rank; those in `sharded` are ignored.
        max_norm: above 0.
        sharded: parameters of which each rank holds other rows; the norm includes the rows of all ranks. Either all
            ranks pass some, or none does.

    Returns:
        The L2 norm of all gradients before clipping, a scalar on their device; the same on every rank.
    """
    sharded = list(sharded)
    is_sharded = set(sharded)
    replicated = [parameter for parameter in parameters if parameter not in is_sharded]
    norm = get_total_norm(_gradients(replicated))
    if sharded:
        sharded_norm = get_total_norm(_gradients(sharded)).to(sharded[0].device)
        norm = torch.sqrt(norm.to(sharded_norm.device).square() + group.all_reduce(sharded_norm.square()))
    clip_grads_with_norm_([*replicated, *sharded], max_norm, norm)
    return norm


def _gradients(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def create_grad_scaler(
    device: torch.device, *, enabled: bool, group: ProcessGroup = SINGLE_PROCESS
) -> torch.amp.GradScaler:
    """Return a loss scaler (Micikevicius et al., ICLR 2018, section 3.2); a disabled one does nothing.

    A step with non-finite gradients is skipped, and the scale is halved. `step` does not wait for the device if the
    optimizer was created with fused=True: torch then passes the flag as a tensor (`_step_supports_amp_scaling`), and
    the kernel skips the step itself. With other optimizers `step` reads the flag on the host.

    Args:
        group: the ranks, if they hold different gradients (sharded classifier) and must agree on which steps to skip;
            SINGLE_PROCESS if all ranks have the same gradients (DDP).
    """
    if group.world_size == 1:
        return torch.amp.GradScaler(device.type, enabled=enabled)
    return _SynchronizedScaler(device.type, enabled=enabled, group=group)


class _SynchronizedScaler(torch.amp.GradScaler):
    """A gradient scaler that skips a step on all ranks if the gradients of one rank are not finite.

    torch's ShardedGradScaler does not work with fused optimizers: it sums the ranks' flags, and a fused kernel skips a
    step only if the flag is exactly 1, so that a step with non-finite gradients on two ranks would be applied; and
    without an earlier `unscale_` its `step` ignores the other ranks.
    """

    def __init__(self, device: str, *, enabled: bool, group: ProcessGroup) -> None:
        super().__init__(device, enabled=enabled)
        self._group = group

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: torch.Tensor, found_inf: torch.Tensor, allow_fp16: bool
    ) -> dict[torch.device, torch.Tensor]:
        # Called by `unscale_`, and by a fused `step` without an earlier `unscale_`.
        flags = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        if not flags:  # a rank without gradients also takes part in the collective
            flags[found_inf.device] = found_inf
        return {device: self._group.all_reduce(flag).clamp_(max=1) for device, flag in flags.items()}
