"""BBN's sampling and cumulative learning."""

from dataclasses import dataclass

import numpy as np
import torch

from lib.loss.targets import Targets
from lib.trainer.mixing.base import MixedBatch, on_device


@dataclass(frozen=True)
class BBN:
    """a L_c + (1 - a) L_r with a = 1 - (T / T_max)^2 (Zhou et al., CVPR 2020, eq. 4 and 5), on one network.

    L_c is the loss of the usual sampler's images (even slots), L_r that of a sampler that prefers rare classes (odd
    slots); a falls from 1 to 0 over the run. This is BBN's dual sampling and cumulative learning, without its two
    branches with a classifier each: all images go through one backbone and one classifier. No pixels are mixed.

    Attributes:
        max_epoch: T_max, epochs in the run; T counts from 0.
    """

    max_epoch: int

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> MixedBatch:
        """Weight images (2 * batch, 3, size, size) float32 with labels (2 * batch,) int64; neither is changed."""
        late = min(1.0, epoch / self.max_epoch) ** 2
        weights = on_device(np.tile([1 - late, late], len(labels) // 2), labels.device)
        return MixedBatch(images, Targets(labels, weights=weights))
