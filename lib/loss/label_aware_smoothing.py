"""Label-aware smoothing."""

import math

import numpy as np
import torch
from torch import nn

from lib.loss.logits import ClassConstants, checked_counts, smallest_count
from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits

# Position x of a class between the smallest (0) and the largest (1) -> interpolation weight from tail to head.
SHAPES = {
    'concave': lambda x: torch.sin(x * math.pi / 2),
    'linear': lambda x: x,
    'convex': lambda x: 1 - torch.cos(x * math.pi / 2),
}


class LabelAwareSmoothing(nn.Module):
    """Label-aware smoothing, L = -(1 - eps_y) ln p_y - eps_y / (C - 1) sum_{j != y} ln p_j
    (MiSLAS: Zhong et al., CVPR 2021, eqs. 3 and 4).

    eps_y interpolates from `tail` at the smallest class with images to `head` at the largest, by a function of x =
    (n_y - n_min) / (n_max - n_min): concave sin(pi x / 2), linear x, convex 1 + sin(3 pi / 2 + pi x / 2). With equal
    counts it is `head`. As in the paper, eps_y is spread over the other classes; its authors' code gives eps_y / C to
    every class, the label included.

    `class_counts` (num_classes,): training images per class; classes without images are treated as the smallest. Logits
    (batch, num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape. head = tail = 0 is cross
    entropy.
    """

    uses_features = False

    def __init__(self, class_counts: np.ndarray | torch.Tensor, head: float, tail: float, shape: str) -> None:
        super().__init__()
        counts = checked_counts(class_counts)
        smallest, largest = smallest_count(counts), counts.max()
        counts = counts.clamp_min(smallest)
        x = (counts - smallest) / (largest - smallest) if largest > smallest else torch.ones_like(counts)
        self._smoothing = ClassConstants(tail + (head - tail) * SHAPES[shape](x))

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        target, rest, mean = target_and_rest_logits(logits, labels, with_mean=True)
        assert mean is not None  # with_mean=True
        log_p = log_probability(target, rest)
        num_classes = logits.shape[1]
        rest_log_p = num_classes * (mean - target + log_p) - log_p  # sum over the other classes
        smoothing = self._smoothing.like(target)[labels]
        return -(1 - smoothing) * log_p - smoothing / max(num_classes - 1, 1) * rest_log_p
