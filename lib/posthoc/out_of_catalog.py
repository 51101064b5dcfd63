"""Images that fit no class: their features are outside of the subspace of the others (ViM: Wang et al., CVPR 2022)."""

import numpy as np
import torch

from lib.posthoc.judged_images import JudgedImages, row_blocks
from lib.posthoc.out_of_fold import Candidates

_FEATURES_PER_DIRECTION = 20
_MAX_FOR_DIRECTIONS = 100_000  # images
_QUANTILE = 0.993  # of the logarithm of confirmed images' residuals
_MAX_DEVIATIONS = 3.0
_SURPLUS, _FEW = 0.5, 20  # of the limit for confirmed images, and for labels of this many images
_SIMILAR = 0.05  # quantile of confirmed images' similarities above which an image fits a class


def find_strangers(images: JudgedImages, candidates: Candidates, device: torch.device | None = None) -> np.ndarray:
    """Return which images fit no class, (n,) bool.

    Images whose label is predicted, which confirms it, define what fits.
    """
    confirmed = candidates.classes[:, 0] == candidates.labels
    if not confirmed.any():
        return np.zeros(len(images), bool)
    similarity = np.fmax(candidates.similarities.max(axis=1), candidates.own_similarity)
    sizes = np.bincount(images.labels, minlength=images.num_classes)[images.labels]
    return is_out_of_catalog(subspace_residuals(images, confirmed, device), similarity, confirmed, sizes)


@torch.inference_mode()
def subspace_residuals(images: JudgedImages, trusted: np.ndarray, device: torch.device | None = None) -> np.ndarray:
    """Return the length of the part of each unit feature outside of the principal directions, (n,) float32.

    There is one direction for 20 features. Two passes; memory O(num_features^2).

    Args:
        trusted: (n,) bool, the images that mean and directions come from, at most 100,000 of them.

    Raises:
        ValueError: no image is trusted.
    """
    device = device or torch.device('cpu')
    rows = np.flatnonzero(trusted)
    if not len(rows):
        raise ValueError('principal directions need at least one trusted image')
    rows = rows[:: -(-len(rows) // _MAX_FOR_DIRECTIONS)]
    total = torch.zeros(images.num_features, dtype=torch.float64, device=device)
    products = torch.zeros(images.num_features, images.num_features, dtype=torch.float64, device=device)
    for some in row_blocks(rows, images.num_features):
        features = images.at(some, device)[0]
        total += features.double().sum(dim=0)
        products += (features.T @ features).double()
    center = total / len(rows)
    number = max(1, images.num_features // _FEATURES_PER_DIRECTION)
    _, vectors = torch.linalg.eigh(products / len(rows) - torch.outer(center, center))
    directions, center = vectors[:, -number:].float(), center.float()
    residuals = np.empty(len(images), np.float32)
    for some in row_blocks(np.arange(len(images)), images.num_features):
        centered = images.at(some, device)[0] - center
        inside = (centered @ directions).square().sum(dim=1)
        residuals[some] = (centered.square().sum(dim=1) - inside).clamp_min(0).sqrt().cpu().numpy()
    return residuals


def is_out_of_catalog(
    residuals: np.ndarray, similarity: np.ndarray, confirmed: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Return which images fit no class, (n,) bool, by the logarithm of the residual minus the median.

    An image that is similar to a class fits it, however large the residual: rare classes have no direction.

    The limit is the 99.3rd percentile of confirmed images, but at most 3 standard deviations (84th percentile minus
    median), since some strangers are confirmed by chance. A confirmed image needs 1.5 times as much. So does any image
    with a label of 20 images or fewer, and one with a label of n images 1 + 10 / n times: that a label is not predicted
    is less of a sign there.

    Args:
        residuals: (n,); nan is never out of the catalog.
        similarity: (n,) of the image and the mean of the class that is most similar to it.
        confirmed: (n,) bool: the classifier that was fitted without the image predicts its label.
        sizes: (n,) images with the label of each.
    """
    logs = np.log(np.maximum(residuals, 1e-12))
    known = confirmed & np.isfinite(logs)
    if not known.any():
        return np.zeros(len(residuals), bool)
    middle, upper, limit = np.quantile(logs[known], (0.5, 0.84, _QUANTILE))
    limit = min(limit - middle, _MAX_DEVIATIONS * (upper - middle))
    factor = 1 + _SURPLUS * np.where(confirmed, 1.0, np.minimum(1, _FEW / np.maximum(sizes, 1)))
    is_outside = logs - middle > factor * max(limit, 1e-3)
    return is_outside & ~(similarity > np.nanquantile(similarity[known], _SIMILAR))
