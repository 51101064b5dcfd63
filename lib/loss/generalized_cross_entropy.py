"""Generalised cross entropy (GCE)."""

import torch
from torch import nn

from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits


class GeneralizedCrossEntropy(nn.Module):
    """Generalised cross entropy, L = (1 - p_y^q) / q (Zhang & Sabuncu, NeurIPS 2018, eq. 6), without truncation.

    q towards 0 is cross entropy (and 0 is), 1 the mean absolute error, halved. Logits (batch, num_classes), labels
    int64 (batch,) or (batch, k) -> losses of the labels' shape.
    """

    uses_features = False

    def __init__(self, q: float) -> None:
        super().__init__()
        self.q = q

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        own, others, _ = target_and_rest_logits(logits, labels)
        log_p = log_probability(own, others)
        return -torch.expm1(self.q * log_p) / self.q if self.q else -log_p
