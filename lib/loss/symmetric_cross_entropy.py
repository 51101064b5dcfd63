"""Symmetric cross entropy (SCE)."""

import torch
from torch import nn

from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, one_minus_p, target_and_rest_logits

LOG_ZERO = -4.0  # A, the value used for ln 0


class SymmetricCrossEntropy(nn.Module):
    """Symmetric cross entropy, L = -forward_weight ln p_y - reverse_weight sum_j p_j ln q_j, q_j = [j = y]
    (Wang et al., ICCV 2019, eqs. 5 to 7).

    ln 0 is set to A = -4, as in the paper and its code, so the second sum is A (1 - p_y). Logits (batch, num_classes),
    labels int64 (batch,) or (batch, k) -> losses of the labels' shape. Weights 1 and 0 are cross entropy.
    """

    uses_features = False

    def __init__(self, forward_weight: float, reverse_weight: float) -> None:
        super().__init__()
        self.forward_weight, self.reverse_weight = forward_weight, reverse_weight

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        target, rest, _ = target_and_rest_logits(logits, labels)
        reverse = -LOG_ZERO * one_minus_p(target, rest)
        return self.reverse_weight * reverse - self.forward_weight * log_probability(target, rest)
