"""CosFace."""

import torch
from torch import nn

from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits


class CosFace(nn.Module):
    """CosFace, L = -ln(e^{s (cos_y - m)} / (e^{s (cos_y - m)} + sum_{j != y} e^{s cos_j}))
    (Wang et al., CVPR 2018, eq. 4).

    Logits (batch, num_classes) are s cos, from a cosine classifier with `scale` s; labels int64 (batch,) or (batch, k)
    -> losses of the labels' shape. margin 0 is cross entropy.
    """

    uses_features = False

    def __init__(self, margin: float, scale: float) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        target, rest, _ = target_and_rest_logits(logits, labels)
        return -log_probability(target - self.scale * self.margin, rest)
