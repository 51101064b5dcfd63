"""The mean feature of every class, and the classifiers made from them."""

from collections.abc import Callable

import numpy as np
import torch

from lib.classifier.cosine import unit
from lib.dataset.features import Features
from lib.dataset.loader import EvalLoader
from lib.dataset.pipeline import Batch
from lib.inference.engine import Engine
from lib.inference.forward import BatchOutput, SingleForward
from lib.inference.run import run
from lib.posthoc.tau_sweep import NEVER

_ROWS_AT_ONCE = 10_000


class ClassMeanSink:
    """Sums features per class on the CPU, in the order of the images, so that results do not depend on the device.

    Args:
        rows: (n,) which images count; those that cannot be decoded never do.
        num_images: number of images of the split.
        unit_length: whether each feature is scaled to length 1 first.
    """

    def __init__(self, rows: np.ndarray, num_images: int, num_classes: int, *, unit_length: bool = False) -> None:
        self._selected = torch.zeros(num_images, dtype=torch.bool)
        self._selected[torch.from_numpy(rows)] = True
        self._sums: torch.Tensor | None = None
        self._counts = torch.zeros(num_classes, dtype=torch.int64)
        self._unit_length = unit_length

    def __call__(self, batch: Batch, output: BatchOutput) -> None:
        """Add a batch."""
        counted = self._selected[batch.rows] & batch.readable.cpu()
        if not counted.any():
            return
        features = output.features.cpu().double()[counted]
        labels = batch.labels.cpu()[counted]
        if self._sums is None:
            self._sums = torch.zeros(len(self._counts), features.shape[1], dtype=torch.float64)
        self._sums.index_add_(0, labels, unit(features) if self._unit_length else features)
        self._counts += torch.bincount(labels, minlength=len(self._counts))

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return means (num_classes, num_features) float64 and counts (num_classes,) int64, on the CPU.

        Raises:
            ValueError: no image has been counted.
        """
        if self._sums is None:
            raise ValueError('class means need at least one readable image')
        return self._sums.div_(self._counts.clamp_min(1)[:, None]), self._counts


@torch.inference_mode()
def class_means(
    engine: Engine, loader: EvalLoader, rows: np.ndarray, *, num_classes: int, unit_length: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the mean feature of each class (NCM: Kang et al., ICLR 2020) by one pass, preprocessed as in validation.

    Args:
        loader: loader of the training images.
        rows: (n,) which images count; those that cannot be decoded never do.
        unit_length: whether each feature is scaled to length 1 first.

    Returns:
        means (num_classes, num_features) float64 and counts (num_classes,) int64, on the CPU. The mean of a class
        without images is 0.

    Raises:
        ValueError: none of the rows can be decoded.
    """
    sink = ClassMeanSink(rows, loader.num_images, num_classes, unit_length=unit_length)
    run(SingleForward(engine, loader), [sink], label='class means')
    return sink.means()


def feature_means(
    features: Features, num_classes: int, *, unit_length: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the same from stored features; images without a label, or that cannot be decoded, do not count."""
    labels = np.where(features.readable, features.labels, -1)
    sums = torch.zeros(num_classes, features.values.shape[1], dtype=torch.float64)
    add_by_class(sums, features, labels, lambda values: unit(values.double()) if unit_length else values.double())
    counts = torch.from_numpy(np.bincount(labels[labels >= 0], minlength=num_classes))
    return sums.div_(counts.clamp_min(1)[:, None]), counts


def add_by_class(
    sums: torch.Tensor, features: Features, labels: np.ndarray, transform: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Add stored features to the sums of their classes, a block of images at a time.

    Args:
        sums: (num_classes, width), changed in place.
        labels: (n,) int64; images with -1 do not count.
        transform: takes (k, num_features) float32 and returns (k, width) of the type of `sums`.
    """
    counted = np.flatnonzero(labels >= 0)
    for start in range(0, len(counted), _ROWS_AT_ONCE):
        rows = counted[start : start + _ROWS_AT_ONCE]
        values = torch.from_numpy(np.array(features.values[rows], np.float32))
        sums.index_add_(0, torch.from_numpy(labels[rows]), transform(values))


def nearest_mean(means: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the linear classifier that predicts the nearest mean: z_j = 2 mu_j . f - |mu_j|^2, float32.

    That is |f|^2 - |f - mu_j|^2. A class without images gets a row of zeros and a bias of -1e30: finite, and never
    the largest.

    Args:
        means: (num_classes, num_features) float64.
        counts: (num_classes,) int64 images per class.

    Returns:
        weight (num_classes, num_features) and bias (num_classes,).
    """
    bias = -means.square().sum(dim=1)
    return (2 * means).float(), bias.masked_fill(counts == 0, NEVER).float()
