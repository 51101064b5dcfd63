"""Label-aware smoothing."""

import math

import numpy as np
import torch
from torch import nn

from lib.loss.logits import ClassConstants, checked_counts, smallest_count
from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits

# Place of a class between the smallest (0) and the largest (1) -> share of the way from tail to head.
SHAPES = {
    'concave': lambda place: torch.sin(place * math.pi / 2),
    'linear': lambda place: place,
    'convex': lambda place: 1 - torch.cos(place * math.pi / 2),
}


class LabelAwareSmoothing(nn.Module):
    """Label-aware smoothing, L = -(1 - eps_y) ln p_y - eps_y / (C - 1) sum_{j != y} ln p_j
    (MiSLAS: Zhong et al., CVPR 2021, eqs. 3 and 4).

    eps_y goes from `tail` at the smallest class with images to `head` at the largest, over x = (n_y - n_min) /
    (n_max - n_min): concave sin(pi x / 2), linear x, convex 1 + sin(3 pi / 2 + pi x / 2) of the way. With equal counts
    it is `head`. The paper's q, whose off-label share goes to the other classes; its authors' code gives eps_y / C to
    every class, the label included.

    `class_counts` (num_classes,): training images a class; classes without any count as the smallest. Logits (batch,
    num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape. head = tail = 0 is cross entropy.
    """

    uses_features = False

    def __init__(self, class_counts: np.ndarray | torch.Tensor, head: float, tail: float, shape: str) -> None:
        super().__init__()
        counts = checked_counts(class_counts)
        smallest, largest = smallest_count(counts), counts.max()
        counts = counts.clamp_min(smallest)
        places = (counts - smallest) / (largest - smallest) if largest > smallest else torch.ones_like(counts)
        self._smoothing = ClassConstants(tail + (head - tail) * SHAPES[shape](places))

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        own, others, mean = target_and_rest_logits(logits, labels, with_mean=True)
        log_p = log_probability(own, others)
        num_classes = logits.shape[1]
        others_log_p = num_classes * (mean - own + log_p) - log_p  # sum over the other classes
        smoothing = self._smoothing.like(own)[labels]
        return -(1 - smoothing) * log_p - smoothing / max(num_classes - 1, 1) * others_log_p
