"""Manifold mixup."""

from dataclasses import dataclass

import torch

from lib.runtime.seeding import Purpose, generator
from lib.trainer.mixing.base import MixDraws, MixedBatch, blend, mixed_targets, on_device, unmixed


@dataclass(frozen=True)
class ManifoldMixup:
    """g = lam g_k(x_i) + (1 - lam) g_k(x_j), y = lam y_i + (1 - lam) y_j, k drawn per step (Verma et al., ICML 2019).

    g_k are the features after stage k of the backbone, g_0 the pixels. Only pixels are mixed here; for another stage
    the images are returned unchanged, and the backbone mixes its features by `lam` (eq. 1 and section 2). k is a
    function of the seed, the epoch and the first slot of the batch.

    Attributes:
        draws: draws of lam, one per image (the authors' code: one per batch).
        stages: stages from which k is drawn, with equal probabilities.
    """

    draws: MixDraws
    stages: tuple[int, ...]

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> MixedBatch:
        """Mix images (batch, 3, size, size) float32 with labels (batch,) int64."""
        if self.draws.is_over(epoch):
            return unmixed(images, labels, epoch=epoch, first_slot=first_slot)
        lam = on_device(self.draws.lam_and_centers(epoch, first_slot, len(labels))[0], images.device)
        targets, stage = mixed_targets(labels, lam), self._stage(epoch, first_slot)
        if stage == 0:
            return MixedBatch(blend(images, lam), targets)
        return MixedBatch(images, targets, stage, lam)

    def _stage(self, epoch: int, first_slot: int) -> int:
        random = generator(self.draws.seed, Purpose.MIX_STAGE, epoch=epoch, slot=first_slot)
        return self.stages[int(random.integers(len(self.stages)))]
