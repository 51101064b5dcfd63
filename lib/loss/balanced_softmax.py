"""Balanced softmax."""

import numpy as np
import torch
from torch import nn

from lib.loss.adjusted import adjusted_cross_entropy, log_prior


class BalancedSoftmax(nn.Module):
    """Balanced softmax, L = -ln(n_y e^{z_y} / sum_c n_c e^{z_c}) (Ren et al., NeurIPS 2020, eq. 4).

    `class_counts` (num_classes,): training images a class. A class without any is left out of the softmax,
    and an image of it (there can be some in validation) does not count. Logits float32 (batch,
    num_classes), labels int64 (batch,) -> the mean over the batch. Equal counts are cross entropy.
    """

    def __init__(self, class_counts: np.ndarray | torch.Tensor) -> None:
        super().__init__()
        # Follows .to(device), but is no part of a checkpoint.
        self.register_buffer('log_prior', log_prior(class_counts), persistent=False)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return adjusted_cross_entropy(logits, labels, self.log_prior)
