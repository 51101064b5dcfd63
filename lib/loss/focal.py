"""Focal loss."""

import torch
import torch.nn.functional as F
from torch import nn


class Focal(nn.Module):
    """Focal loss, L = -(1 - p_y)^gamma ln p_y (Lin et al., ICCV 2017, eq. 4), with p the softmax.

    The paper has one sigmoid a class; this is the softmax form of single-label recognition, without alpha.
    Logits float32 (batch, num_classes), labels int64 (batch,) -> the mean over the batch. gamma 0 is cross
    entropy.
    """

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(logits, labels, reduction='none')  # -ln p_y, (batch,)
        # expm1 keeps the digits of 1 - p_y near p_y = 1. Held above zero, where the slope of a power below 1
        # is infinite and would make 0 * inf.
        misses = (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny)
        return (misses**self.gamma * losses).mean()
