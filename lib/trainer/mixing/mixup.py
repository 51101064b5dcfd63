"""Mixup."""

from dataclasses import dataclass

import torch

from lib.trainer.mixing.base import MixDraws, MixedBatch, blend, on_device, shared_labels, unmixed


@dataclass(frozen=True)
class Mixup:
    """x = l x_i + (1 - l) x_j, y = l y_i + (1 - l) y_j with l ~ Beta(alpha, alpha) (Zhang et al., ICLR 2018, eq. 2).

    j is i XOR 1, and every image has its own l (the authors' code: one a batch, partners at random). The images that
    come in stay as they are.
    """

    draws: MixDraws

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> MixedBatch:
        """Mix images (batch, 3, size, size) float32 with labels (batch,) int64."""
        if self.draws.is_over(epoch):
            return unmixed(images, labels, epoch=epoch, first_slot=first_slot)
        shares = on_device(self.draws.shares_and_places(epoch, first_slot, len(labels))[0], images.device)
        return MixedBatch(blend(images, shares), shared_labels(labels, shares))
