"""Generalized cross entropy (GCE)."""

import torch
from torch import nn

from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits


class GeneralizedCrossEntropy(nn.Module):
    """Generalized cross entropy, L = (1 - p_y^q) / q (Zhang & Sabuncu, NeurIPS 2018, eq. 6), without truncation.

    q = 0 is cross entropy, which is also the limit q -> 0; q = 1 is half the mean absolute error.
    Logits (batch, num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape.
    """

    uses_features = False

    def __init__(self, q: float) -> None:
        super().__init__()
        self.q = q

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        target, rest, _ = target_and_rest_logits(logits, labels)
        log_p = log_probability(target, rest)
        return -torch.expm1(self.q * log_p) / self.q if self.q else -log_p
