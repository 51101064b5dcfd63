"""Softmax cross entropy."""

import torch
import torch.nn.functional as F
from torch import nn


class CrossEntropy(nn.Module):
    """Cross entropy, L = -sum_c q_c ln p_c, with label smoothing (Szegedy et al., CVPR 2016, section 7).

    q_c = (1 - label_smoothing) [c = y] + label_smoothing / num_classes. Logits float32 (batch,
    num_classes), labels int64 (batch,) -> the mean over the batch.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
