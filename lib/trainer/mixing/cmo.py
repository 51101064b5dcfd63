"""CMO: rare foregrounds on common backgrounds."""

from dataclasses import dataclass

import torch

from lib.loss.targets import Targets
from lib.trainer.mixing.base import MixDraws, MixedBatch, cut_boxes, on_device, paste


@dataclass(frozen=True)
class CMO:
    """x = M x_b + (1 - M) x_f, y = lam y_b + (1 - lam) y_f with CutMix's box (Park et al., CVPR 2022, eq. 1 and 2).

    Even slots hold backgrounds b of the usual sampler, odd ones foregrounds f of a sampler that prefers rare classes;
    2B images become B. The paper draws f by q(1, k), in proportion to 1 / n_k (sampler `reverse`), and mixes half of
    the batches (probability 0.5, of images here); the authors' code gives that weight to each image, so that its
    classes are equally frequent (`class_balance`), and mixes neither the first nor the last three epochs. An image
    that is not mixed is its background alone.
    """

    draws: MixDraws

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> MixedBatch:
        """Mix images (2 * batch, 3, size, size) float32 with labels (2 * batch,) int64 to batches of half that."""
        backgrounds, foregrounds = images[::2], images[1::2]
        if self.draws.is_over(epoch):
            return MixedBatch(backgrounds, Targets(labels[::2]))
        drawn, centers = self.draws.lam_and_centers(epoch, first_slot, len(labels))
        boxes, exact = cut_boxes(drawn[::2], centers[::2], *images.shape[2:])
        lam = on_device(exact, images.device)
        return MixedBatch(
            paste(backgrounds, foregrounds, boxes), Targets(labels.view(-1, 2), torch.stack([lam, 1 - lam], 1))
        )
