"""Scaling of the loss, so that float16 gradients do not vanish."""

import torch

from lib.distributed.process_group import ALONE, Ranks


def make_scaler(device: torch.device, *, enabled: bool, ranks: Ranks = ALONE) -> torch.amp.GradScaler:
    """Return a scaler of the loss (Micikevicius et al., ICLR 2018, section 3.2); a disabled one leaves all as it is.

    After a step with gradients that are not finite the weights stay and the scale is halved. `step` does not wait for
    the device where the optimiser was created with fused=True: torch then hands it the flag as a tensor
    (`_step_supports_amp_scaling`), and its kernel passes the step over by itself. With any other optimiser, `step` has
    to read the flag on the host.

    Args:
        ranks: those that hold different gradients (a sharded classifier), and must agree on which step is passed over.
            With gradients that are equal on all of them (DDP) leave it ALONE.
    """
    if ranks.count == 1:
        return torch.amp.GradScaler(device.type, enabled=enabled)
    return _AgreedScaler(device.type, enabled=enabled, ranks=ranks)


class _AgreedScaler(torch.amp.GradScaler):
    """A scaler whose ranks pass a step over if one of them has to.

    torch's ShardedGradScaler does not fit fused optimisers: it adds the ranks' flags up, and a fused kernel passes a
    step over at exactly 1, so that it would take one that is bad on two ranks; and without an earlier `unscale_` its
    `step` does not ask the other ranks.
    """

    def __init__(self, device: str, *, enabled: bool, ranks: Ranks) -> None:
        super().__init__(device, enabled=enabled)
        self._ranks = ranks

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: torch.Tensor, found_inf: torch.Tensor, allow_fp16: bool
    ) -> dict[torch.device, torch.Tensor]:
        # Both ways to the flags, `unscale_` and a fused `step` without it, go through here.
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        if not found:  # a rank without any gradient takes part all the same
            found[found_inf.device] = found_inf
        return {device: self._ranks.sum(flag).clamp_(max=1) for device, flag in found.items()}
