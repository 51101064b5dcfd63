"""CutMix."""

from dataclasses import dataclass

import torch

from lib.trainer.mixing.base import MixDraws, MixedBatch, cut_boxes, on_device, partners, paste, shared_labels, unmixed


@dataclass(frozen=True)
class CutMix:
    """x = M x_i + (1 - M) x_j, y = l y_i + (1 - l) y_j: M is 0 in a box (Yun et al., ICCV 2019, eq. 1 and 2).

    The box is as large as l ~ Beta(alpha, alpha) asks, in whole pixels and within the image; the labels' l is the
    share of the pixels that stayed (the authors' code does the same). j is i XOR 1, and every image has its own box.
    The images that come in stay as they are.
    """

    draws: MixDraws

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> MixedBatch:
        """Mix images (batch, 3, size, size) float32 with labels (batch,) int64."""
        if self.draws.is_over(epoch):
            return unmixed(images, labels, epoch=epoch, first_slot=first_slot)
        wanted, places = self.draws.shares_and_places(epoch, first_slot, len(labels))
        boxes, shares = cut_boxes(wanted, places, *images.shape[2:])
        return MixedBatch(
            paste(images, partners(images), boxes), shared_labels(labels, on_device(shares, images.device))
        )
