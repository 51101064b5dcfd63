"""Focal loss, the softmax form."""

import torch
from torch import nn

from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, one_minus_p, target_and_rest_logits


class Focal(nn.Module):
    """Focal loss, L = -(1 - p_y)^gamma ln p_y (Lin et al., ICCV 2017, eq. 4), with p the softmax.

    The paper has one sigmoid a class (SigmoidFocal); this is the form for one label an image, without alpha.
    Logits (batch, num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape. gamma 0 is cross
    entropy.
    """

    uses_features = False

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        own, others, _ = target_and_rest_logits(logits, labels)
        # Held above zero, where the slope of a power below 1 is infinite and would make 0 * inf.
        misses = one_minus_p(own, others).clamp_min(torch.finfo(own.dtype).tiny)
        return -(misses**self.gamma) * log_probability(own, others)
