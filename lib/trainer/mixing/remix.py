"""Remix: mixup with labels shifted to the rarer class."""

from dataclasses import dataclass

import torch

from lib.loss.targets import Targets
from lib.trainer.mixing.base import MixDraws, MixedBatch, blend, mixed_targets, on_device, partners, unmixed


@dataclass(frozen=True)
class Remix:
    """x = lam x_i + (1 - lam) x_j, y = lam_y y_i + (1 - lam_y) y_j (Chou et al., ECCV 2020 workshops, eq. 6 to 8), with

        lam_y = 0 if n_i / n_j >= kappa and lam < tau; 1 if n_i / n_j <= 1 / kappa and 1 - lam < tau; else lam.

    With a kappa that no ratio reaches, or tau 0, it is mixup. If both cases hold, the first counts.

    Attributes:
        draws: draws of lam.
        class_counts: (num_classes,) training images per class, on the device of the batches.
        kappa: at least 1; 3 in the paper.
        tau: from 0 to 1; 0.5 in the paper.
    """

    draws: MixDraws
    class_counts: torch.Tensor
    kappa: float
    tau: float

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> MixedBatch:
        """Mix images (batch, 3, size, size) float32 with labels (batch,) int64."""
        if self.draws.is_over(epoch):
            return unmixed(images, labels, epoch=epoch, first_slot=first_slot)
        lam = on_device(self.draws.lam_and_centers(epoch, first_slot, len(labels))[0], images.device)
        return MixedBatch(blend(images, lam), self._targets(labels, lam))

    def _targets(self, labels: torch.Tensor, lam: torch.Tensor) -> Targets:
        counts = self.class_counts[labels].float()
        partner_counts = partners(counts)
        is_zero = (counts >= self.kappa * partner_counts) & (lam < self.tau)
        is_one = (self.kappa * counts <= partner_counts) & (1 - lam < self.tau)
        return mixed_targets(labels, lam.masked_fill(is_one, 1.0).masked_fill(is_zero, 0.0))
