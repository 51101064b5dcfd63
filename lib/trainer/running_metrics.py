"""What training adds up over an epoch."""

from typing import NamedTuple

import torch

from lib.distributed.process_group import Ranks
from lib.trainer.checkpointing.state import Place


class Done(NamedTuple):
    """What a step did: this rank's share of the batch's loss, and how many of its images were right; both scalars."""

    loss: torch.Tensor
    num_right: torch.Tensor


class Sums:
    """Running sums of an epoch, on the device until somebody looks.

    They are added up step by step from those of the place on, so that they do not depend on who looks when, nor on
    where the epoch was interrupted.
    """

    def __init__(self, place: Place, ranks: Ranks, device: torch.device) -> None:
        self._place, self._ranks = place, ranks
        # MPS has no float64; float32 does for a figure that is looked at.
        dtype = torch.float32 if device.type == 'mps' else torch.float64
        loss_sum, num_right = (place.loss_sum, place.num_right) if ranks.is_main else (0.0, 0)
        self._loss_sum = torch.tensor(loss_sum, dtype=dtype, device=device)  # loss times images
        self._num_right = torch.tensor(num_right, dtype=torch.int64, device=device)
        self._num_images = place.num_images
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, done: Done, num_images: int, step: int) -> None:
        """Add a step, of `num_images` over all ranks."""
        self._loss_sum += done.loss.to(self._loss_sum.dtype) * num_images
        self._num_right += done.num_right
        self._num_images += num_images
        first = (self._first_bad_step < 0) & ~torch.isfinite(done.loss)
        self._first_bad_step = torch.where(first, step, self._first_bad_step)

    def look(self) -> int:
        """Put the sums over all ranks into the place, and return the first step with a loss that is not finite.

        -1: there is none. All ranks look at the same step; it waits for the device.
        """
        self._place.loss_sum = float(self._ranks.sum(self._loss_sum))
        self._place.num_right = int(self._ranks.sum(self._num_right))
        self._place.num_images = self._num_images
        steps = [step for step in self._ranks.stack(self._first_bad_step).tolist() if step >= 0]
        return min(steps, default=-1)
