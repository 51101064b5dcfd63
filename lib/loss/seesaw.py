"""Seesaw loss."""

import numpy as np
import torch
from torch import nn

from lib.loss.logits import ClassConstants, LogitBlock, checked_counts
from lib.loss.sharded_logits import Logits, loss_dtype, select_classes, without_overwrite
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits


class Seesaw(nn.Module):
    """Seesaw loss, L = -ln(e^{z_y} / sum_j S_yj e^{z_j}), S_yj = M_yj C_yj (Wang et al., CVPR 2021, eqs. 1 to 6).

    M_yj = min(1, n_j / n_y)^mitigation, C_yj = max(1, sigma_j / sigma_y)^compensation, sigma is the softmax of z, a
    constant to the gradient. sigma_j / sigma_y is e^{z_j - z_y}, so the factors are added as logarithms. Its authors'
    code counts the images seen so far and clamps sigma_y to at least 0.01; here n is that of the training set, and
    sigma_y is not clamped.

    `class_counts` (num_classes,) is n; classes without images count as having 1, as in that code. Logits (batch,
    num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape; k labels cost k times as much.
    Exponents 0 and 0 are cross entropy.
    """

    uses_features = False

    def __init__(self, class_counts: np.ndarray | torch.Tensor, mitigation: float, compensation: float) -> None:
        super().__init__()
        self._log_counts = ClassConstants(checked_counts(class_counts).clamp_min(1).log())
        self.mitigation, self.compensation = mitigation, compensation

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        label_matrix = labels if labels.ndim == 2 else labels[:, None]  # (batch, k)
        # The weights of the other classes depend on the label, so each label is computed separately.
        logits = without_overwrite(logits) if label_matrix.shape[1] > 1 else logits
        losses = [self._label_loss(logits, column) for column in label_matrix.unbind(dim=1)]
        return torch.stack(losses, dim=1).view_as(labels)

    def _label_loss(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        log_counts = self._log_counts.to(logits.device, loss_dtype(logits))
        column_log_counts = select_classes(log_counts, logits)

        def add_log_weights(block: LogitBlock) -> None:
            """Add ln S_yj."""
            if self.compensation:
                block.values.add_((block.values - block.target_logits()).clamp_min_(0), alpha=self.compensation)
            if self.mitigation:
                block.values.add_((column_log_counts - log_counts[block.labels]).clamp_max_(0), alpha=self.mitigation)

        target, rest, _ = target_and_rest_logits(logits, labels, add_log_weights=add_log_weights)
        return -log_probability(target, rest)
