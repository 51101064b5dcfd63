"""Manifold mixup."""

from dataclasses import dataclass

import torch

from lib.runtime.seeding import Purpose, generator
from lib.trainer.mixing.base import MixDraws, MixedBatch, blend, on_device, shared_labels, unmixed


@dataclass(frozen=True)
class ManifoldMixup:
    """g = l g_k(x_i) + (1 - l) g_k(x_j), y = l y_i + (1 - l) y_j, k drawn anew for each step (Verma et al., ICML 2019).

    g_k are the features after stage k of the backbone, g_0 the pixels. Only those are mixed here; at another stage the
    images come back as they were, and the backbone is to mix its features by `shares` (eq. 1 and section 2). Which
    k it is depends on the seed, the epoch and the slot that the batch begins at.

    Attributes:
        draws: of l, one an image (the authors' code: one a batch).
        stages: to choose from, with equal chances.
    """

    draws: MixDraws
    stages: tuple[int, ...]

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> MixedBatch:
        """Mix images (batch, 3, size, size) float32 with labels (batch,) int64."""
        if self.draws.is_over(epoch):
            return unmixed(images, labels, epoch=epoch, first_slot=first_slot)
        shares = on_device(self.draws.shares_and_places(epoch, first_slot, len(labels))[0], images.device)
        targets, stage = shared_labels(labels, shares), self._stage(epoch, first_slot)
        if stage == 0:
            return MixedBatch(blend(images, shares), targets)
        return MixedBatch(images, targets, stage, shares)

    def _stage(self, epoch: int, first_slot: int) -> int:
        random = generator(self.draws.seed, Purpose.MIX_STAGE, epoch=epoch, slot=first_slot)
        return self.stages[int(random.integers(len(self.stages)))]
