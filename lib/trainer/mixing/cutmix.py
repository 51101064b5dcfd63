"""CutMix."""

from dataclasses import dataclass

import torch

from lib.trainer.mixing.base import MixDraws, MixedBatch, cut_boxes, mixed_targets, on_device, partners, paste, unmixed


@dataclass(frozen=True)
class CutMix:
    """x = M x_i + (1 - M) x_j, y = lam y_i + (1 - lam) y_j: M is 0 in a box (Yun et al., ICCV 2019, eq. 1 and 2).

    The size of the box follows lam ~ Beta(alpha, alpha), in whole pixels and clipped to the image; the labels' lam is
    the fraction of pixels that remain (as in the authors' code). j is i XOR 1, and every image has its own box. The
    input images are not changed.
    """

    draws: MixDraws

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> MixedBatch:
        """Mix images (batch, 3, size, size) float32 with labels (batch,) int64."""
        if self.draws.is_over(epoch):
            return unmixed(images, labels, epoch=epoch, first_slot=first_slot)
        drawn, centers = self.draws.lam_and_centers(epoch, first_slot, len(labels))
        boxes, exact = cut_boxes(drawn, centers, *images.shape[2:])
        lam = on_device(exact, images.device)
        return MixedBatch(paste(images, partners(images), boxes), mixed_targets(labels, lam))
