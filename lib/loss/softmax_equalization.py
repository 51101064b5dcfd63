"""Softmax equalization loss (SEQL)."""

import numpy as np
import torch
from torch import nn

from lib.loss.logits import LogitBlock, checked_counts
from lib.loss.sharded_logits import Logits, ShardedLogits, select_classes, without_overwrite
from lib.loss.target_vs_rest import log_probability, target_and_rest_logits


class SoftmaxEqualization(nn.Module):
    """Softmax equalization loss, L = -ln(e^{z_y} / sum_j w_j e^{z_j}), w_j = 1 - beta T(f_j) (1 - [j = y])
    (SEQL: Tan et al., CVPR 2020, eqs. 7 to 9).

    T(f_j) is 1 for a tail class, whose share f_j of the training images is below `tail_share`; beta is 1 with chance
    `probability`, drawn for each image from torch's global generator (a training step seeds it): then other images do
    not push tail classes down. So the paper reads; public codes draw beta for each image and class, which takes as
    many random numbers as there are logits.

    `class_counts` (num_classes,): training images a class. Logits (batch, num_classes), labels int64 (batch,) or
    (batch, k) -> losses of the labels' shape. If every other class is spared the loss is 0. probability 0 is cross
    entropy.
    """

    uses_features = False

    def __init__(self, class_counts: np.ndarray | torch.Tensor, tail_share: float, probability: float) -> None:
        super().__init__()
        counts = checked_counts(class_counts)
        self.register_buffer('_is_tail', counts / counts.sum() < tail_share, persistent=False)
        self.probability = probability

    def forward(self, logits: Logits, labels: torch.Tensor) -> torch.Tensor:
        spares = self._draw(logits)
        columns = labels if labels.ndim == 2 else labels[:, None]
        # One label at a time: a tail class that is another label of the image is spared as well.
        logits = without_overwrite(logits) if columns.shape[1] > 1 else logits
        losses = [self._losses(logits, column, spares) for column in columns.unbind(dim=1)]
        return torch.stack(losses, dim=1).view_as(labels)

    def _draw(self, logits: Logits) -> torch.Tensor:
        """Return whether each image spares tail classes, (batch,) bool; parts of the classes agree on it."""
        draws = torch.rand(len(logits), device=logits.device)
        if isinstance(logits, ShardedLogits):
            draws = logits.columns.join(draws)[0]
        return draws < self.probability

    def _losses(self, logits: Logits, labels: torch.Tensor, spares: torch.Tensor) -> torch.Tensor:
        is_tail = select_classes(self._is_tail, logits)

        def spare(block: LogitBlock) -> None:
            block.values.masked_fill_(spares[block.rows, None] & is_tail, -torch.inf)

        own, others, _ = target_and_rest_logits(logits, labels, weigh=spare)
        return -log_probability(own, others)
