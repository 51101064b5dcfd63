"""Linear discriminant analysis, cross-fitted: one pass over the features fits a classifier for each fold without it.

Classes are Gaussians with one covariance S, the one within classes, shrunk: R = (1 - a) S + a mean(diag S) I (Friedman,
Regularized Discriminant Analysis, JASA 1989). Logits are mu_c' R^-1 x - (mu_c' R^-1 mu_c - trace(R^-1 S) / n_c) / 2:
the mean of n_c images is longer than that of the class, so a plain discriminant misses small classes (Moran and Murphy,
Applied Statistics 1979). They are divided by a temperature; a and the temperature minimize the cross entropy of the
images of the first fold. Sums per fold are subtracted from the sums over all, so the cost is
n (num_features^2 + num_classes), and no iterations.
"""

import numpy as np
import torch

from lib.posthoc.judged_images import LEAST_WEIGHT, NUM_FOR_SCALE, JudgedImages, row_blocks
from lib.posthoc.linear_head import LinearHead
from lib.posthoc.tau_sweep import NEVER

SHRINKAGES = (0.1, 0.3, 0.5, 0.7, 0.9)
SCALES = 2.0 ** (np.arange(-16, 7) / 2)  # 1 / temperature
_LEAST_VARIANCE = 1e-8


class FoldedDiscriminants:
    """Weighted sums of the unit features of each fold, minus the mean of all images; n_c is (sum w)^2 / sum w^2.

    Args:
        images: features, labels and weights.
        folds: (n,) int64 fold of each image.
        device: the one that computes.
    """

    def __init__(self, images: JudgedImages, folds: np.ndarray, device: torch.device) -> None:
        num_folds, width = int(folds.max()) + 1, images.num_features
        self._images, self._folds = images, folds
        self._center = images.mean(device)
        self._sums = torch.zeros(num_folds, images.num_classes, width, device=device)
        self._totals = torch.zeros(num_folds, images.num_classes, device=device)
        self._squares = torch.zeros(num_folds, images.num_classes, device=device)
        self._products = torch.zeros(num_folds, width, width, dtype=torch.float64, device=device)
        for some in row_blocks(np.arange(len(images)), width):
            for fold in np.unique(folds[some]).tolist():
                features, labels, weights = images.at(some[folds[some] == fold], device)
                features = features - self._center
                weighted = features * weights[:, None]
                self._sums[fold].index_add_(0, labels, weighted)
                self._totals[fold].index_add_(0, labels, weights)
                self._squares[fold].index_add_(0, labels, weights.square())
                self._products[fold] += (weighted.T @ features).double()

    def heads(self) -> list[LinearHead]:
        """Return a classifier of unit features for the images of each fold, fitted to the other folds.

        A class without other images has a bias that never wins.
        """
        shrinkage, scale = self.select()
        return [self.fit(fold, shrinkage, scale) for fold in range(len(self._sums))]

    def fit(self, fold: int, shrinkage: float, scale: float = 1.0) -> LinearHead:
        """Return the classifier of unit features that is fitted to the other folds; its logits are multiplied."""
        sums, totals = self._sums.sum(dim=0) - self._sums[fold], self._totals.sum(dim=0) - self._totals[fold]
        means = sums / totals.clamp_min(LEAST_WEIGHT)[:, None]  # (num_classes, num_features)
        products = self._products.sum(dim=0) - self._products[fold]
        covariance = (products - (sums.T @ means).double()) / totals.sum().clamp_min(LEAST_WEIGHT)
        variance = covariance.diagonal().mean().clamp_min(_LEAST_VARIANCE)
        identity = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
        shrunk = (1 - shrinkage) * covariance + shrinkage * variance * identity
        inverse = torch.linalg.inv(shrunk)
        weight = scale * means @ inverse.float()
        squares = self._squares.sum(dim=0) - self._squares[fold]
        surplus = scale * float((inverse * covariance).sum()) * (squares / totals.square().clamp_min(LEAST_WEIGHT**2))
        bias = (surplus - (weight * means).sum(dim=1)) / 2 - weight @ self._center
        return LinearHead(weight, bias.masked_fill(totals <= LEAST_WEIGHT, NEVER))

    @torch.inference_mode()
    def select(self) -> tuple[float, float]:
        """Return the shrinkage and the scale with the smallest cross entropy on images of the first fold."""
        held_out = np.flatnonzero(self._folds == 0)
        held_out = held_out[:: -(-len(held_out) // NUM_FOR_SCALE)]
        losses = np.zeros((len(SHRINKAGES), len(SCALES)))
        for row, shrinkage in enumerate(SHRINKAGES):
            head = self.fit(0, shrinkage)
            for some in row_blocks(held_out, max(head.num_classes, self._images.num_features)):
                features, labels, weights = self._images.at(some, head.weight.device)
                logits, weights = head.logits(features), weights * (head.bias[labels] > NEVER / 2)
                for column, scale in enumerate(SCALES.tolist()):
                    loss = torch.nn.functional.cross_entropy(logits * scale, labels, reduction='none')
                    losses[row, column] += float((loss * weights).where(weights > 0, 0.0).sum())
        best = np.unravel_index(int(losses.argmin()), losses.shape)
        return SHRINKAGES[int(best[0])], float(SCALES[int(best[1])])
