"""The mean features of every class, and the classifiers they make."""

import numpy as np
import torch

from lib.classifier.cosine import unit
from lib.dataset.loader import EvalLoader
from lib.inference.features import Features
from lib.model import Recognizer
from lib.posthoc.tau_sweep import NEVER
from lib.runtime.log import progress_bar

_ROWS_AT_ONCE = 10_000


@torch.inference_mode()
def class_means(
    model: Recognizer, loader: EvalLoader, rows: np.ndarray, *, num_classes: int, unit_length: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean feature of each class over images seen as in validation (NCM: Kang et al., ICLR 2020).

    Images that cannot be decoded do not count.

    Args:
        model: put into eval mode here, and back into what it was.
        loader: of the training images.
        rows: (n,) which of them count.
        unit_length: each feature is scaled to length 1 first.

    Returns:
        means (num_classes, num_features) float64 and counts (num_classes,) int64, on the CPU. Summed there, in the
        order of the images, so that they do not depend on how a GPU adds. A class without images has a mean of 0.
    """
    was_training = model.training
    model.eval()
    takes_part = torch.zeros(loader.num_images, dtype=torch.bool)
    takes_part[torch.from_numpy(rows)] = True
    counts = torch.zeros(num_classes, dtype=torch.int64)
    sums: torch.Tensor | None = None
    for batch in progress_bar(loader, total=len(loader), label='class means'):
        counted = takes_part[batch.rows] & batch.readable.cpu()
        if not counted.any():
            continue
        features = model.features(batch.images).cpu().double()[counted]
        labels = batch.labels.cpu()[counted]
        if sums is None:
            sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64)
        sums.index_add_(0, labels, unit(features) if unit_length else features)
        counts += torch.bincount(labels, minlength=num_classes)
    model.train(was_training)
    if sums is None:
        raise ValueError('class means need at least one readable image')
    return sums.div_(counts.clamp_min(1)[:, None]), counts


def feature_means(
    features: Features, num_classes: int, *, unit_length: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same of features that are kept; images without a label, or that cannot be decoded, do not count."""
    counted = np.flatnonzero((features.labels >= 0) & features.readable)
    sums = torch.zeros(num_classes, features.values.shape[1], dtype=torch.float64)
    for rows in np.array_split(counted, max(1, len(counted) // _ROWS_AT_ONCE)):
        values = torch.from_numpy(np.array(features.values[rows])).double()
        sums.index_add_(0, torch.from_numpy(features.labels[rows]), unit(values) if unit_length else values)
    counts = torch.from_numpy(np.bincount(features.labels[counted], minlength=num_classes))
    return sums.div_(counts.clamp_min(1)[:, None]), counts


def nearest_mean(means: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the linear classifier that prefers the nearest mean, z_j = 2 mu_j . f - |mu_j|^2, float32.

    That is |f|^2 - |f - mu_j|^2. A class without images gets a row of zeros and a bias of -1e30: finite, and never
    the largest.

    Returns:
        weight (num_classes, num_features) and bias (num_classes,).
    """
    bias = -means.square().sum(dim=1)
    return (2 * means).float(), bias.masked_fill(counts == 0, NEVER).float()
