"""The primitive of the weighted losses: losses of single labels -> one number a batch.

Weights that make up for how many images a class has.
"""

import math
from typing import Protocol

import numpy as np
import torch
from torch import nn

from lib.loss.logits import checked_counts
from lib.loss.sharded_logits import Logits
from lib.loss.targets import Targets


def effective_number(class_counts: np.ndarray | torch.Tensor, beta: float) -> torch.Tensor:
    """Return weights in proportion to (1 - beta) / (1 - beta^n_c) (class-balanced loss: Cui et al., CVPR 2019, eq. 9).

    float32 (num_classes,), averaging to 1 over the classes that have images; 0 for the others. beta in [0, 1): 0 is no
    weights, towards 1 it is inverse frequency.
    """
    counts = checked_counts(class_counts)
    # expm1 keeps the digits of 1 - beta^n for beta near 1.
    numbers = -torch.expm1(counts * math.log(beta)) if beta else (counts > 0).double()
    return _averaging_to_one(numbers.reciprocal(), counts)


def inverse_frequency(class_counts: np.ndarray | torch.Tensor, exponent: float) -> torch.Tensor:
    """Return weights in proportion to n_c^-exponent: 1 is cost-sensitive learning, 0 no weights.

    float32 (num_classes,), averaging to 1 over the classes that have images; 0 for the others.
    """
    counts = checked_counts(class_counts)
    return _averaging_to_one(counts**-exponent, counts)


def _averaging_to_one(weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    has_images = counts > 0
    weights = weights.masked_fill(~has_images, 0)
    return (weights * (has_images.sum() / weights.sum())).float()


class LabelLoss(Protocol):
    """A loss: logits float (batch, num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape.

    Entry (i, j) is the loss of image i if labels[i, j] were its label. `uses_features`: it is called with the
    features (batch, num_features) as a third argument. One that changes over the run has `set_epoch(epoch)`, too.
    """

    uses_features: bool

    def __call__(self, logits: Logits, labels: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor: ...


class WeightedLoss(nn.Module):
    """Average a loss over the batch, sum_i v_i sum_k s_ik w_{y_ik} L_ik over a denominator, from an epoch on with w.

    v are the images' weights, s the labels' shares and w the class weights. Deferred re-weighting (DRW: Cao et al.,
    NeurIPS 2019, section 3.3) is class weights from a late epoch on, 1 before it.

    Args:
        loss: what is averaged.
        class_counts: (num_classes,) training images a class. Labels without any do not count.
        class_weights: (num_classes,); None: 1.
        from_epoch: first epoch (from 0) with the weights.
        over_weights: divide by the sum of all weights (F.cross_entropy's mean; the code of LDAM-DRW), else by the
            number of images (the code of class-balanced loss, whose weights average to 1 over the classes).
    """

    def __init__(
        self,
        loss: nn.Module,
        class_counts: torch.Tensor,
        class_weights: torch.Tensor | None = None,
        *,
        reweight_from_epoch: int = 0,
        over_weights: bool = True,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.over_weights = over_weights
        self.reweight_from_epoch = reweight_from_epoch
        self._weighted = False
        has_images = (torch.as_tensor(class_counts) > 0).float()
        self.register_buffer('_has_images', has_images if not has_images.all() else None, persistent=False)
        weights = None if class_weights is None else torch.as_tensor(class_weights).float() * has_images
        self.register_buffer('_class_weights', weights, persistent=False)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Weigh classes if it is time."""
        self._weighted = self._class_weights is not None and epoch >= self.reweight_from_epoch
        if hasattr(self.loss, 'set_epoch'):
            self.loss.set_epoch(epoch)

    def forward(self, logits: Logits, targets: Targets, features: torch.Tensor | None = None) -> torch.Tensor:
        """Return the average, a scalar; 0 for a batch of which nothing counts."""
        return self.total(logits, targets, features) / self.normalizer(targets)

    def total(self, logits: Logits, targets: Targets, features: torch.Tensor | None = None) -> torch.Tensor:
        """Return the weighted sum over a batch or a part of one, a scalar."""
        extra = (features,) if self.loss.uses_features else ()
        losses = self.loss(logits, targets.labels, *extra)  # (batch,) or (batch, k)
        parts = self._parts(targets)
        if parts is None:
            return losses.sum()
        # Not losses * 0 where a label does not count: its loss may be infinite.
        return (losses * parts[1]).masked_fill(parts[1] == 0, 0).sum()

    def normalizer(self, targets: Targets) -> torch.Tensor:
        """Return what the total of these targets is divided by, a float32 scalar above 0.

        It takes no logits, so that of a whole batch is known before its first part is computed.
        """
        parts = self._parts(targets)
        if parts is None:
            return torch.full((), float(targets.labels.numel()), device=targets.labels.device)
        shares, weights = parts
        normalizer = (weights if self.over_weights else shares).sum()
        return normalizer.clamp_min(torch.finfo(normalizer.dtype).tiny)

    def _parts(self, targets: Targets) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return how much each label counts before and after class weights, in the labels' shape; None: all alike."""
        by_class = self._class_weights if self._weighted else self._has_images
        if targets.shares is None and targets.weights is None and by_class is None:
            return None
        shares = targets.shares if targets.shares is not None else torch.ones_like(targets.labels, dtype=torch.float32)
        if targets.weights is not None:
            shares = shares * (targets.weights[:, None] if shares.ndim == 2 else targets.weights)
        if self._has_images is not None:
            shares = shares * self._has_images[targets.labels]
        return shares, shares * by_class[targets.labels] if by_class is not None else shares
