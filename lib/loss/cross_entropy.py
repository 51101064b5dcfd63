"""Softmax cross entropy, plain or on logits that are scaled and shifted per class."""

import torch
from torch import nn

from lib.loss.logits import ClassConstants
from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits


class CrossEntropy(nn.Module):
    """Cross entropy, L = -sum_c q_c ln p_c, with label smoothing (Szegedy et al., CVPR 2016, section 7).

    q_c = (1 - label_smoothing) [c = y] + label_smoothing / num_classes. Logits (batch, num_classes), labels int64
    (batch,) or (batch, k) -> losses of the labels' shape.
    """

    uses_features = False

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        target, rest, mean = target_and_rest_logits(logits, labels, with_mean=self.label_smoothing > 0)
        log_p = log_probability(target, rest)
        if mean is None:
            return -log_p
        # ln p_c = z_c - (target - log_p), so this is the mean of ln p over the classes.
        mean_log_p = mean - target + log_p
        return -(1 - self.label_smoothing) * log_p - self.label_smoothing * mean_log_p


class AdjustedCrossEntropy(nn.Module):
    """Cross entropy on adjusted logits, L = -ln softmax(scale * z + shift)_y: the base of several long-tail losses.

    `scale` and `shift`: (num_classes,) or None. A shift of -inf takes a class out of the softmax: its logit gets no
    gradient, and as a label (possible in validation) it has loss 0 and gradient 0.
    Logits (batch, num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape.
    """

    uses_features = False

    def __init__(self, scale: torch.Tensor | None = None, shift: torch.Tensor | None = None) -> None:
        super().__init__()
        self._scale = None if scale is None else ClassConstants(scale)
        self._shift = None if shift is None else ClassConstants(shift)
        self._has_excluded_classes = shift is not None and not bool(shift.isfinite().all())

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        target, rest, _ = target_and_rest_logits(logits, labels, scale=self._scale, shift=self._shift)
        if self._has_excluded_classes:
            is_excluded = target.isneginf()
            # Both, because the difference of two infinities would be nan.
            target, rest = target.masked_fill(is_excluded, torch.inf), rest.masked_fill(is_excluded, 0)
        return -log_probability(target, rest)
