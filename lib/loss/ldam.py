"""Label-distribution-aware margins (LDAM)."""

import numpy as np
import torch
from torch import nn

from lib.loss.logits import ClassConstants, checked_counts, smallest_count
from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits


class LDAM(nn.Module):
    """LDAM, L = -ln(e^{z_y - s m_y} / (e^{z_y - s m_y} + sum_{j != y} e^{z_j})), m_y = margin (n_min / n_y)^{1/4}
    (Cao et al., NeurIPS 2019, eqs. 10 and 13).

    As in its authors' code, `margin` is the margin of the smallest class, and `scale` s is that of the cosine
    classifier, whose logits are z = s cos (1 for a linear classifier). `class_counts` (num_classes,): training images
    per class; n_min is the smallest count above 0, and classes without images have the margin of the smallest class.
    Logits (batch, num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape. margin 0 is cross
    entropy.
    """

    uses_features = False

    def __init__(self, class_counts: np.ndarray | torch.Tensor, margin: float, scale: float) -> None:
        super().__init__()
        counts = checked_counts(class_counts)
        smallest = smallest_count(counts)
        self._margins = ClassConstants(scale * margin * (smallest / counts.clamp_min(smallest)) ** 0.25)

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        target, rest, _ = target_and_rest_logits(logits, labels)
        return -log_probability(target - self._margins.like(target)[labels], rest)
