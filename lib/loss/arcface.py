"""ArcFace."""

import math

import torch
from torch import nn

from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits

# The slope of cos(theta + m) over cos(theta) grows as 1 / sin(theta); sin^2 is held here, so the slope at 1000.
_SMALLEST_SQUARED_SINE = 1e-6


class ArcFace(nn.Module):
    """ArcFace, L = -ln(e^{s cos(theta_y + m)} / (e^{s cos(theta_y + m)} + sum_{j != y} e^{s cos theta_j}))
    (Deng et al., CVPR 2019, eq. 3).

    Beyond theta = pi - m, where cos(theta + m) would rise again, its authors' code goes on with cos(theta) - m sin(m),
    which falls; so does this. Logits (batch, num_classes) are s cos(theta), of a cosine classifier with `scale` s;
    labels int64 (batch,) or (batch, k) -> losses of the labels' shape. `margin` m in radians; 0 is cross entropy.
    """

    uses_features = False

    def __init__(self, margin: float, scale: float) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        own, others, _ = target_and_rest_logits(logits, labels)
        return -log_probability(self._with_margin(own), others)

    def _with_margin(self, own: torch.Tensor) -> torch.Tensor:
        """s cos(theta) -> s cos(theta + m)."""
        cos_m, sin_m = math.cos(self.margin), math.sin(self.margin)
        cosine = own / self.scale
        # (1 - c)(1 + c) keeps more digits than 1 - c^2 near c = 1. Logits of another classifier have cosines beyond 1.
        sine = ((1 - cosine) * (1 + cosine)).clamp_min(_SMALLEST_SQUARED_SINE).sqrt()
        shifted = own * cos_m - self.scale * sin_m * sine
        return torch.where(cosine > -cos_m, shifted, own - self.scale * self.margin * sin_m)
