"""Logit adjustment."""

import numpy as np
import torch

from lib.loss.cross_entropy import AdjustedCrossEntropy
from lib.loss.logits import checked_counts


def shift_by_prior(counts: torch.Tensor, tau: float) -> torch.Tensor:
    """Return tau ln(n_c / N), float64 (num_classes,): -inf for classes without images, but 0 if tau is 0."""
    return tau * (counts / counts.sum()).log() if tau else torch.zeros_like(counts)


class LogitAdjustment(AdjustedCrossEntropy):
    """Logit-adjusted cross entropy, L = -ln softmax(z + tau ln pi)_y (Menon et al., ICLR 2021, eq. 10).

    pi_c = n_c / N, where n is `class_counts` (num_classes,). Classes without images are left out of the softmax, and as
    labels they have loss 0. tau 1 is balanced softmax, tau 0 cross entropy.
    """

    def __init__(self, class_counts: np.ndarray | torch.Tensor, tau: float) -> None:
        super().__init__(shift=shift_by_prior(checked_counts(class_counts), tau))
