"""Influence-balanced loss (IB)."""

import torch
from torch import nn

from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, one_minus_p, target_and_rest_logits


class InfluenceBalanced(nn.Module):
    """Influence-balanced loss, L = -alpha ln p_y / (||p - e_y||_1 ||h||_1 + epsilon) (Park et al., ICCV 2021, eq. 7).

    h are the features (batch, num_features), the input of the classifier. ||p - e_y||_1 is 2 (1 - p_y), so no (batch,
    num_classes) difference is computed. alpha and epsilon come from its authors' code; the paper has neither. Its
    lambda, weights inversely proportional to the class counts, is left to WeightedLoss.

    Logits (batch, num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape.

    Args:
        differentiated: False: the influence is a constant weight, as in the paper; True: the gradient also flows
            through it, to the features as well, as in its authors' code.
        reweight_from_epoch: the first epoch (from 0) with the influence weights; cross entropy before it, as in both.
    """

    uses_features = True

    def __init__(
        self, *, differentiated: bool, reweight_from_epoch: int = 0, alpha: float = 1000.0, epsilon: float = 1e-3
    ) -> None:
        super().__init__()
        self.differentiated = differentiated
        self.reweight_from_epoch = reweight_from_epoch
        self.alpha, self.epsilon = alpha, epsilon
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Apply the influence weights from `reweight_from_epoch` on."""
        self._is_balanced = epoch >= self.reweight_from_epoch

    def forward(self, logits: Logits, labels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        target, rest, _ = target_and_rest_logits(logits, labels)
        if not self._is_balanced:
            return -log_probability(target, rest)
        norms = features.to(target.dtype).abs().sum(dim=1)  # (batch,)
        influence = 2 * one_minus_p(target, rest) * (norms[:, None] if labels.ndim == 2 else norms)
        if not self.differentiated:
            influence = influence.detach()
        return -self.alpha * log_probability(target, rest) / (influence + self.epsilon)
