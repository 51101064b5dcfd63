"""Seesaw loss."""

import numpy as np
import torch
from torch import nn

from lib.loss.logits import ClassConstants, LogitBlock, checked_counts
from lib.loss.sharded_logits import Logits, loss_dtype, select_classes, without_overwrite
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits


class Seesaw(nn.Module):
    """Seesaw loss, L = -ln(e^{z_y} / sum_j S_yj e^{z_j}), S_yj = M_yj C_yj (Wang et al., CVPR 2021, eqs. 1 to 6).

    M_yj = min(1, n_j / n_y)^mitigation, C_yj = max(1, sigma_j / sigma_y)^compensation, sigma the softmax of z, which
    takes no gradient here. sigma_j / sigma_y is e^{z_j - z_y}, so all is added up as logarithms. Unlike its authors'
    code, which counts the images that it has met so far and holds sigma_y above 0.01, n is the training set's and
    sigma_y is as it is.

    `class_counts` (num_classes,) is n; a class without images counts as having one, as in that code. Logits (batch,
    num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape; k labels cost k times as much.
    Both exponents 0 are cross entropy.
    """

    uses_features = False

    def __init__(self, class_counts: np.ndarray | torch.Tensor, mitigation: float, compensation: float) -> None:
        super().__init__()
        self._log_counts = ClassConstants(checked_counts(class_counts).clamp_min(1).log())
        self.mitigation, self.compensation = mitigation, compensation

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        columns = labels if labels.ndim == 2 else labels[:, None]
        # Every label of an image has its own weights of the other classes.
        logits = without_overwrite(logits) if columns.shape[1] > 1 else logits
        losses = [self._losses(logits, column) for column in columns.unbind(dim=1)]
        return torch.stack(losses, dim=1).view_as(labels)

    def _losses(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        log_counts = self._log_counts.to(logits.device, loss_dtype(logits))
        at_logits = select_classes(log_counts, logits)

        def add_log_weights(block: LogitBlock) -> None:
            """Add ln S_yj."""
            if self.compensation:
                block.values.add_((block.values - block.own()).clamp_min_(0), alpha=self.compensation)
            if self.mitigation:
                block.values.add_((at_logits - log_counts[block.labels]).clamp_max_(0), alpha=self.mitigation)

        own, others, _ = target_and_rest_logits(logits, labels, weigh=add_log_weights)
        return -log_probability(own, others)
