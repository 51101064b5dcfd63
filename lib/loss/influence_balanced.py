"""Influence-balanced loss (IB)."""

import torch
from torch import nn

from lib.loss.sharded_logits import Logits
from lib.loss.target_vs_rest import log_probability, one_minus_p, target_and_rest_logits


class InfluenceBalanced(nn.Module):
    """Influence-balanced loss, L = -alpha ln p_y / (||p - e_y||_1 ||h||_1 + epsilon) (Park et al., ICCV 2021, eq. 7).

    h are the features (batch, num_features) that the classifier gets. ||p - e_y||_1 is 2 (1 - p_y), so no (batch,
    num_classes) difference is needed. alpha and epsilon are its authors' code's, the paper has neither. Its lambda, a
    weight a class in inverse proportion to the images, is left to class weights.

    `differentiated`: False: the influence is a weight, without gradient, as in the paper; True: it takes part in the
    gradient, into the features too, as in its authors' code. Before `from_epoch` this is cross entropy, as in both.
    Logits (batch, num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape.
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
        """Weigh by influence if it is time."""
        self._balances = epoch >= self.reweight_from_epoch

    def forward(self, logits: Logits, labels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        own, others, _ = target_and_rest_logits(logits, labels)
        if not self._balances:
            return -log_probability(own, others)
        sizes = features.to(own.dtype).abs().sum(dim=1)  # (batch,)
        influence = 2 * one_minus_p(own, others) * (sizes[:, None] if labels.ndim == 2 else sizes)
        if not self.differentiated:
            influence = influence.detach()
        return -self.alpha * log_probability(own, others) / (influence + self.epsilon)
