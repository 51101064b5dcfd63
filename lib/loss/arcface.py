"""ArcFace, with one margin or with margins by class size."""

import math

import numpy as np
import torch
from torch import nn

from lib.loss.logits import ClassConstants, checked_counts, smallest_count
from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits

# The derivative of cos(theta + m) by cos(theta) grows as 1 / sin(theta); sin^2 is clamped here, so that it is <= 1000.
_MIN_SQUARED_SINE = 1e-6


class ArcFace(nn.Module):
    """ArcFace, L = -ln(e^{s cos(theta_y + m)} / (e^{s cos(theta_y + m)} + sum_{j != y} e^{s cos theta_j}))
    (Deng et al., CVPR 2019, eq. 3).

    Beyond theta = pi - m, where cos(theta + m) would rise again, cos(theta) - m sin(m) is used, which falls, as in its
    authors' code. Logits (batch, num_classes) are s cos(theta), from a cosine classifier with `scale` s; labels int64
    (batch,) or (batch, k) -> losses of the labels' shape. `margin` m in radians, one number or (num_classes,), one for
    each class; 0 is cross entropy.
    """

    uses_features = False

    def __init__(self, margin: float | torch.Tensor, scale: float) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self._of_class: tuple[ClassConstants, ...] = ()
        if isinstance(margin, torch.Tensor):
            self._of_class = tuple(map(ClassConstants, (margin, margin.double().cos(), margin.double().sin())))

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        target, rest, _ = target_and_rest_logits(logits, labels)
        return -log_probability(self._with_margin(target, labels), rest)

    def _with_margin(self, target: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return s cos(theta + m) for target = s cos(theta), of the labels' shape."""
        margin: float | torch.Tensor
        cos_m: float | torch.Tensor
        sin_m: float | torch.Tensor
        if isinstance(self.margin, torch.Tensor):
            margin, cos_m, sin_m = (constants.like(target)[labels] for constants in self._of_class)
        else:
            margin, cos_m, sin_m = self.margin, math.cos(self.margin), math.sin(self.margin)
        cosine = target / self.scale
        # (1 - c)(1 + c) is more accurate than 1 - c^2 near c = 1. A linear classifier may have "cosines" beyond 1.
        sine = ((1 - cosine) * (1 + cosine)).clamp_min(_MIN_SQUARED_SINE).sqrt()
        shifted = target * cos_m - self.scale * sin_m * sine
        return torch.where(cosine > -cos_m, shifted, target - self.scale * margin * sin_m)


def margins_by_size(class_counts: np.ndarray | torch.Tensor, smallest: float, largest: float) -> torch.Tensor:
    """Return the margins (num_classes,) m_c = a n_c^{-1/4} + b (Ha et al., arXiv:2010.05350).

    a and b are such that the smallest class has the margin `smallest`, and the largest class `largest`. Classes without
    images count as the smallest one; if all classes are equal in size, their margin is `smallest`.

    Args:
        class_counts: (num_classes,) training images per class.
    """
    counts = checked_counts(class_counts)
    counts = counts.clamp_min(smallest_count(counts))
    low, high = counts.max() ** -0.25, counts.min() ** -0.25
    if low == high:
        return torch.full_like(counts, smallest)
    return largest + (smallest - largest) * (counts**-0.25 - low) / (high - low)
