"""Softmax cross entropy."""

import torch
from torch import nn

from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits


class CrossEntropy(nn.Module):
    """Cross entropy, L = -sum_c q_c ln p_c, with label smoothing (Szegedy et al., CVPR 2016, section 7).

    q_c = (1 - label_smoothing) [c = y] + label_smoothing / num_classes. Logits (batch, num_classes), labels int64
    (batch,) or (batch, k) -> losses of the labels' shape.
    """

    uses_features = False

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        own, others, mean = target_and_rest_logits(logits, labels, with_mean=self.label_smoothing > 0)
        log_p = log_probability(own, others)
        if not self.label_smoothing:
            return -log_p
        # ln p_c = z_c - (own - log_p), so the mean of ln p over the classes is this.
        mean_log_p = mean - own + log_p
        return -(1 - self.label_smoothing) * log_p - self.label_smoothing * mean_log_p
