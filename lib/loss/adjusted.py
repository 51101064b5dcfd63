"""Cross entropy on logits that are scaled and shifted class by class."""

import torch
from torch import nn

from lib.loss.logits import ClassConstants
from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits


class AdjustedCrossEntropy(nn.Module):
    """L = -ln softmax(scale * z + shift)_y.

    `scale` and `shift`: (num_classes,) or None. A shift of -inf takes a class out of the softmax: nothing pushes it,
    and as a label (there can be some in validation) it has loss 0 and gradient 0.
    Logits (batch, num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape.
    """

    uses_features = False

    def __init__(self, scale: torch.Tensor | None = None, shift: torch.Tensor | None = None) -> None:
        super().__init__()
        self._scale = None if scale is None else ClassConstants(scale)
        self._shift = None if shift is None else ClassConstants(shift)
        self._some_left_out = shift is not None and not bool(shift.isfinite().all())

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        own, others, _ = target_and_rest_logits(logits, labels, scale=self._scale, shift=self._shift)
        if self._some_left_out:
            left_out = own.isneginf()
            # Both, since the difference of two infinities would be nan.
            own, others = own.masked_fill(left_out, torch.inf), others.masked_fill(left_out, 0)
        return -log_probability(own, others)
