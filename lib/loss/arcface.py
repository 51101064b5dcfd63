"""ArcFace."""

import math

import torch
from torch import nn

from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits

# The derivative of cos(theta + m) by cos(theta) grows as 1 / sin(theta); sin^2 is clamped here, so that it is <= 1000.
_MIN_SQUARED_SINE = 1e-6


class ArcFace(nn.Module):
    """ArcFace, L = -ln(e^{s cos(theta_y + m)} / (e^{s cos(theta_y + m)} + sum_{j != y} e^{s cos theta_j}))
    (Deng et al., CVPR 2019, eq. 3).

    Beyond theta = pi - m, where cos(theta + m) would rise again, cos(theta) - m sin(m) is used, which falls, as in its
    authors' code. Logits (batch, num_classes) are s cos(theta), from a cosine classifier with `scale` s; labels int64
    (batch,) or (batch, k) -> losses of the labels' shape. `margin` m in radians; 0 is cross entropy.
    """

    uses_features = False

    def __init__(self, margin: float, scale: float) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        target, rest, _ = target_and_rest_logits(logits, labels)
        return -log_probability(self._with_margin(target), rest)

    def _with_margin(self, target: torch.Tensor) -> torch.Tensor:
        """Return s cos(theta + m) for target = s cos(theta), of any shape."""
        cos_m, sin_m = math.cos(self.margin), math.sin(self.margin)
        cosine = target / self.scale
        # (1 - c)(1 + c) is more accurate than 1 - c^2 near c = 1. A linear classifier may have "cosines" beyond 1.
        sine = ((1 - cosine) * (1 + cosine)).clamp_min(_MIN_SQUARED_SINE).sqrt()
        shifted = target * cos_m - self.scale * sin_m * sine
        return torch.where(cosine > -cos_m, shifted, target - self.scale * self.margin * sin_m)
