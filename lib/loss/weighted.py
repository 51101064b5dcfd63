"""Class weights, and the weighted mean of per-label losses over a batch."""

import math

import numpy as np
import torch
from torch import nn

from lib.loss.logits import checked_counts
from lib.loss.sharded_logits import Logits
from lib.loss.targets import Targets


def effective_number(class_counts: np.ndarray | torch.Tensor, beta: float) -> torch.Tensor:
    """Return weights proportional to (1 - beta) / (1 - beta^n_c) (class-balanced loss: Cui et al., CVPR 2019, eq. 9).

    float32 (num_classes,), with mean 1 over the classes that have images; 0 for the others. beta is in [0, 1): 0 gives
    equal weights, beta towards 1 inverse frequency.
    """
    counts = checked_counts(class_counts)
    # expm1 keeps 1 - beta^n accurate for beta near 1.
    numbers = -torch.expm1(counts * math.log(beta)) if beta else (counts > 0).double()
    return _with_mean_1(numbers.reciprocal(), counts)


def inverse_frequency(class_counts: np.ndarray | torch.Tensor, exponent: float) -> torch.Tensor:
    """Return weights proportional to n_c^-exponent: exponent 1 is cost-sensitive learning, 0 gives equal weights.

    float32 (num_classes,), with mean 1 over the classes that have images; 0 for the others.
    """
    counts = checked_counts(class_counts)
    return _with_mean_1(counts**-exponent, counts)


def _with_mean_1(weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    has_images = counts > 0
    weights = weights.masked_fill(~has_images, 0)
    return (weights * (has_images.sum() / weights.sum())).float()


class WeightedLoss(nn.Module):
    """Average a loss over the batch, sum_i v_i sum_k lam_ik w_{y_ik} L_ik / normalizer, with w = 1 before an epoch.

    v are the images' weights, lam the labels' mixing coefficients and w the class weights. Deferred re-weighting (DRW:
    Cao et al., NeurIPS 2019, section 3.3) is class weights from a late epoch on.

    Args:
        loss: logits float (batch, num_classes), labels int64 (batch,) or (batch, k) -> losses of the labels' shape;
            entry (i, j) is the loss of image i if labels[i, j] were its label. If its attribute `uses_features` is
            true it also receives the features (batch, num_features); `set_epoch(epoch)` is called if it exists.
        class_counts: (num_classes,), training images per class. Labels of classes without images are ignored.
        class_weights: (num_classes,); None: 1.
        reweight_from_epoch: the first epoch (from 0) with class weights.
        weighted_mean: normalize by the sum of all weights (the mean of F.cross_entropy; the code of LDAM-DRW), else by
            the number of images (the code of class-balanced loss, whose weights have mean 1 over the classes).
    """

    _has_images: torch.Tensor | None
    _class_weights: torch.Tensor | None

    def __init__(
        self,
        loss: nn.Module,
        class_counts: torch.Tensor,
        class_weights: torch.Tensor | None = None,
        *,
        reweight_from_epoch: int = 0,
        weighted_mean: bool = True,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.weighted_mean = weighted_mean
        self.reweight_from_epoch = reweight_from_epoch
        self._uses_class_weights = False
        has_images = (torch.as_tensor(class_counts) > 0).float()
        self.register_buffer('_has_images', has_images if not has_images.all() else None, persistent=False)
        weights = None if class_weights is None else torch.as_tensor(class_weights).float() * has_images
        self.register_buffer('_class_weights', weights, persistent=False)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Apply class weights from `reweight_from_epoch` on; forward the epoch to the loss."""
        self._uses_class_weights = self._class_weights is not None and epoch >= self.reweight_from_epoch
        set_epoch = getattr(self.loss, 'set_epoch', None)
        if set_epoch is not None:
            set_epoch(epoch)

    def forward(self, logits: Logits, targets: Targets, features: torch.Tensor | None = None) -> torch.Tensor:
        """Return the weighted mean, a scalar; 0 for a batch whose labels all have weight 0."""
        return self.total(logits, targets, features) / self.normalizer(targets)

    def total(self, logits: Logits, targets: Targets, features: torch.Tensor | None = None) -> torch.Tensor:
        """Return the weighted sum over a batch or a chunk of one, a scalar."""
        extra = (features,) if self.loss.uses_features else ()
        losses = self.loss(logits, targets.labels, *extra)  # (batch,) or (batch, k)
        label_weights = self._label_weights(targets)
        if label_weights is None:
            return losses.sum()
        _, weights = label_weights
        # Not losses * 0 where a label has weight 0: its loss may be infinite.
        return (losses * weights).masked_fill(weights == 0, 0).sum()

    def normalizer(self, targets: Targets) -> torch.Tensor:
        """Return the denominator of the weighted mean, a float32 scalar above 0.

        It needs no logits, so that it is known for a whole batch before the first micro-batch is computed.
        """
        label_weights = self._label_weights(targets)
        if label_weights is None:
            return torch.full((), float(targets.labels.numel()), device=targets.labels.device)
        unweighted, weighted = label_weights
        normalizer = (weighted if self.weighted_mean else unweighted).sum()
        return normalizer.clamp_min(torch.finfo(normalizer.dtype).tiny)

    def _label_weights(self, targets: Targets) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return each label's weight without and with class weights, in the labels' shape; None: all are 1."""
        class_weights = self._class_weights if self._uses_class_weights else self._has_images
        if targets.lam is None and targets.weights is None and class_weights is None:
            return None
        lam = targets.lam if targets.lam is not None else torch.ones_like(targets.labels, dtype=torch.float32)
        if targets.weights is not None:
            lam = lam * (targets.weights[:, None] if lam.ndim > targets.weights.ndim else targets.weights)
        if self._has_images is not None:
            lam = lam * self._has_images[targets.labels]
        return lam, lam * class_weights[targets.labels] if class_weights is not None else lam
