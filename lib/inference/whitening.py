"""Discriminative and PCA whitening of features: decorrelated axes of equal variance, of which the first may be kept."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lib.classifier.cosine import unit
from lib.inference.neighbors import CPU

_BLOCK_VALUES = 1 << 23  # 32 MB of float32 at once
_LEAST_VARIANCE = 1e-12  # of unit vectors


@dataclass(frozen=True)
class Whitening:
    """A map of features x to y = P (x / |x| - mean), scaled to unit length.

    The axes are in descending order of importance, so the first k of them are the best k-dimensional features. A zero
    vector, that of an image without features, stays zero.

    Attributes:
        mean: (num_features,) float32 mean of the unit features.
        projection: (dimensions, num_features) float32, the axes as rows.
    """

    mean: np.ndarray
    projection: np.ndarray

    @property
    def dimensions(self) -> int:
        """The number of values of a whitened feature."""
        return len(self.projection)

    def __call__(self, features: np.ndarray, *, device: torch.device = CPU) -> np.ndarray:
        """Return the whitened features, (n, dimensions) float32 of unit length, from (n, num_features)."""
        whitened = np.zeros((len(features), self.dimensions), np.float32)
        mean, projection = (torch.from_numpy(array).to(device) for array in (self.mean, self.projection))
        for rows, x in _unit_blocks(features, device):
            y = unit((x - mean) @ projection.T)
            whitened[rows] = torch.where(x.any(dim=1, keepdim=True), y, 0.0).cpu().numpy()
        return whitened


def fit_whitening(
    features: np.ndarray, labels: np.ndarray | None = None, *, dimensions: int = 0, device: torch.device = CPU
) -> Whitening:
    """Fit a whitening to the features of training images, in two passes over them.

    With labels, the covariance R that becomes the identity is that within classes, and the axes are the principal ones
    of the class means (discriminative whitening: Mikolajczyk and Matas, ICCV 2007; Radenovic et al., TPAMI 2019,
    section 3.3). So directions in which photos of one product differ count little. Without labels, R and the axes are
    those of all images (PCA whitening: Jégou and Chum, ECCV 2012). An axis along which the class means, or all images,
    have variance b is multiplied by b / (1 + b), which takes the place of a number of axes to keep; with labels this is
    the expected class mean, given one image (probabilistic LDA: Ioffe, ECCV 2006).

    The covariance S of few images has axes of much too small variance, which would be magnified most. So R is
    (1 - a) S + a mean(diag S) I with the weight a of the smallest expected squared error (Ledoit and Wolf, A
    Well-Conditioned Estimator for Large-Dimensional Covariance Matrices, J. Multivariate Analysis 2004). The covariance
    of the class means is shrunk in the same way: in directions in which few known classes agree, others may differ.

    Args:
        features: (n, num_features) float32 or float16, maybe memory-mapped; zero vectors are left out.
        labels: (n,) int, those below 0 are left out; of one class only, they are ignored.
        dimensions: how many axes to keep; 0: all.
        device: the one that computes.

    Raises:
        ValueError: no features, more dimensions than they have, or values that are not finite.
    """
    width = features.shape[1]
    if dimensions > width:
        raise ValueError(f'cannot keep {dimensions} axes of {width} features')
    groups = torch.from_numpy(np.zeros(len(features), np.int64) if labels is None else labels.astype(np.int64))
    sums = torch.zeros(int(groups.max()) + 1 if len(groups) else 0, width, device=device)
    counts = torch.zeros(len(sums), device=device)
    for x, some in _labeled_blocks(features, groups, device):
        sums.index_add_(0, some, x)
        counts += torch.bincount(some, minlength=len(sums))
    number = int(counts.sum())
    if not number or not bool(sums.isfinite().all()):
        raise ValueError('there are no features to fit a whitening to, or some are not finite')
    mean = sums.sum(dim=0) / number
    means = sums.div_(counts.clamp_min(1)[:, None])  # of each class, in the place of its sum
    within, fourth_powers = torch.zeros(width, width, dtype=torch.float64, device=device), 0.0
    for x, some in _labeled_blocks(features, groups, device):
        x = x - means[some]
        within += (x.T @ x).double()
        fourth_powers += float(x.square().sum(dim=1).double().square().sum())
    within /= number
    means = (means - mean).mul_((counts / number).sqrt()[:, None])
    variances, axes = torch.linalg.eigh(_shrunk(within, fourth_powers / number, number))
    to_white = axes / variances.clamp_min(_LEAST_VARIANCE).sqrt()
    signal, num_classes = to_white.T @ within @ to_white, int((counts > 0).sum())
    if num_classes > 1:  # the class means, as few as they are, are shrunk as the images are
        whitened = (means @ to_white.float()).double()
        fourth_powers = float(whitened.square().sum(dim=1).square().sum()) * num_classes
        signal = _shrunk(whitened.T @ whitened, fourth_powers, num_classes)
    strengths, axes = torch.linalg.eigh(signal)
    strengths, axes = strengths.flip(0).clamp_min(0), axes.flip(1)
    projection = (to_white @ axes * (strengths / (1 + strengths))).T[: dimensions or width]
    return Whitening(mean.cpu().numpy(), projection.float().contiguous().cpu().numpy())


def _shrunk(covariance: torch.Tensor, fourth_powers: float, number: int) -> torch.Tensor:
    """Return Ledoit and Wolf's estimate (their section 3.2); `fourth_powers`: the mean of |x - mean|^4."""
    variance = float(covariance.diagonal().mean())
    squares = float(covariance.square().sum())
    # d^2 and b^2 of the paper, times num_features.
    distance, error = squares - len(covariance) * variance**2, (fourth_powers - squares) / number
    weight = min(1.0, max(0.0, error / distance)) if distance > 0 else 1.0
    return (1 - weight) * covariance + weight * variance * torch.eye(len(covariance)).to(covariance)


def _unit_blocks(features: np.ndarray, device: torch.device) -> Iterator[tuple[slice, torch.Tensor]]:
    size = max(1, _BLOCK_VALUES // max(1, features.shape[1]))
    for start in range(0, len(features), size):
        rows = slice(start, start + size)
        # Copied, since torch warns about read-only memory such as that of a memory-mapped file.
        yield rows, unit(torch.from_numpy(np.array(features[rows], np.float32)).to(device))


def _labeled_blocks(
    features: np.ndarray, labels: torch.Tensor, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield unit vectors (block, num_features) and their labels (block,), both on the device."""
    for rows, x in _unit_blocks(features, device):
        some = labels[rows].to(device)
        used = x.any(dim=1) & (some >= 0)
        yield x[used], some[used]
