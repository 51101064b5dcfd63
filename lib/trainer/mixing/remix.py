"""Remix: mixup whose label leans to the rarer class."""

from dataclasses import dataclass

import torch

from lib.loss.targets import Targets
from lib.trainer.mixing.base import MixDraws, MixedBatch, blend, on_device, partners, shared_labels, unmixed


@dataclass(frozen=True)
class Remix:
    """x = l x_i + (1 - l) x_j, y = l_y y_i + (1 - l_y) y_j (Chou et al., ECCV 2020 workshops, eq. 6 to 8), with

        l_y = 0 if n_i / n_j >= kappa and l < tau; 1 if n_i / n_j <= 1 / kappa and 1 - l < tau; else l.

    With a kappa that no ratio reaches, or tau 0, it is mixup. Of two cases that both hold, the first counts.

    Attributes:
        draws: of l.
        class_counts: (num_classes,) training images a class, on the device of the batches.
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
        shares = on_device(self.draws.shares_and_places(epoch, first_slot, len(labels))[0], images.device)
        return MixedBatch(blend(images, shares), self._targets(labels, shares))

    def _targets(self, labels: torch.Tensor, shares: torch.Tensor) -> Targets:
        own = self.class_counts[labels].float()
        other = partners(own)
        takes_nothing = (own >= self.kappa * other) & (shares < self.tau)
        takes_all = (self.kappa * own <= other) & (1 - shares < self.tau)
        return shared_labels(labels, shares.masked_fill(takes_all, 1.0).masked_fill(takes_nothing, 0.0))
