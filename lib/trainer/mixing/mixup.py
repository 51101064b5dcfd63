"""Mixup."""

from dataclasses import dataclass

import torch

from lib.trainer.mixing.base import MixDraws, MixedBatch, blend, mixed_targets, on_device, unmixed


@dataclass(frozen=True)
class Mixup:
    """x = lam x_i + (1 - lam) x_j, y = lam y_i + (1 - lam) y_j (Zhang et al., ICLR 2018, eq. 2).

    lam ~ Beta(alpha, alpha). j is i XOR 1, and every image has its own lam (the authors' code: one per batch, random
    partners). The input images are not changed.
    """

    draws: MixDraws

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> MixedBatch:
        """Mix images (batch, 3, size, size) float32 with labels (batch,) int64."""
        if self.draws.is_over(epoch):
            return unmixed(images, labels, epoch=epoch, first_slot=first_slot)
        lam = on_device(self.draws.lam_and_centers(epoch, first_slot, len(labels))[0], images.device)
        return MixedBatch(blend(images, lam), mixed_targets(labels, lam))
