"""Softmax equalization loss (SEQL)."""

import numpy as np
import torch
from torch import nn

from lib.loss.logits import LogitBlock, checked_counts
from lib.loss.sharded_logits import Logits, ShardedLogits, loss_dtype, select_classes, without_overwrite
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits

_LOG_0 = -1e30  # e to this power is 0; not -inf, whose product with 0 is nan


class SoftmaxEqualization(nn.Module):
    """Softmax equalization loss, L = -ln(e^{z_y} / sum_j w_j e^{z_j}), w_j = 1 - beta T(f_j) (1 - [j = y])
    (SEQL: Tan et al., CVPR 2020, eqs. 7 to 9).

    T(f_j) is 1 for tail classes, whose fraction f_j of the training images is below lambda = `tail_fraction`. beta is 1
    with `probability`, drawn per image from torch's global generator (a training step seeds it): the image is then no
    negative example of tail classes. This follows the paper; public implementations draw beta per image and class,
    which takes as many random numbers as there are logits.

    `class_counts` (num_classes,): training images per class. Logits (batch, num_classes), labels int64 (batch,) or
    (batch, k) -> losses of the labels' shape. If all other classes are excluded the loss is 0. probability 0 is cross
    entropy.
    """

    uses_features = False
    _is_tail: torch.Tensor

    def __init__(self, class_counts: np.ndarray | torch.Tensor, tail_fraction: float, probability: float) -> None:
        super().__init__()
        counts = checked_counts(class_counts)
        self.register_buffer('_is_tail', counts / counts.sum() < tail_fraction, persistent=False)
        self.probability = probability

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        ignores_tail = self._draw(logits)
        label_matrix = labels if labels.ndim == 2 else labels[:, None]  # (batch, k)
        # One label at a time: a tail class that is another label of the image is excluded as well.
        logits = without_overwrite(logits) if label_matrix.shape[1] > 1 else logits
        losses = [self._label_loss(logits, column, ignores_tail) for column in label_matrix.unbind(dim=1)]
        return torch.stack(losses, dim=1).view_as(labels)

    def _draw(self, logits: Logits) -> torch.Tensor:
        """Return which images are no negatives of tail classes, (batch,) bool; the same on all shards."""
        draws = torch.rand(len(logits), device=logits.device)
        if isinstance(logits, ShardedLogits) and logits.subset is not None:
            draws = logits.subset.all_gather(draws)[0]
        return draws < self.probability

    def _label_loss(self, logits: Logits, labels: torch.Tensor, ignores_tail: torch.Tensor) -> torch.Tensor:
        log_weights = select_classes(self._is_tail, logits).to(loss_dtype(logits)) * _LOG_0
        ignores = ignores_tail.to(log_weights.dtype)

        def exclude_tail(block: LogitBlock) -> None:
            # The outer product takes a tenth of the time of filling under a mask.
            block.values.addr_(ignores[block.rows], log_weights)

        target, rest, _ = target_and_rest_logits(logits, labels, add_log_weights=exclude_tail)
        return -log_probability(target, rest)
