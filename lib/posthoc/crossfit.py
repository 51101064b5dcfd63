"""What is fitted on some images is measured on others: folds, and the exact sweeps by folds."""

from dataclasses import dataclass, replace

import numpy as np

from lib.posthoc.tau_sweep import ImageIntervals

NUM_FOLDS = 5


def stratified_folds(labels: np.ndarray, num_folds: int = NUM_FOLDS, *, seed: int = 0) -> np.ndarray:
    """Return the fold of each image, (n,) int64 from 0: each class is spread over the folds as evenly as it can be.

    Args:
        labels: (n,) classes.
        seed: the same folds come from the same seed and labels.

    Raises:
        ValueError: fewer than two folds, or fewer images than folds.
    """
    if num_folds < 2 or len(labels) < num_folds:
        raise ValueError(f'{len(labels)} images cannot be split into {num_folds} folds: at least 2, and an image each')
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind='stable')]
    # Dealt out in turn through all classes: classes of one image too come to different folds.
    folds = np.empty(len(labels), np.int64)
    folds[order] = np.arange(len(labels)) % num_folds
    return folds


@dataclass(frozen=True)
class CrossFitResult:
    """What a method does to images that it was not fitted on.

    Attributes:
        right: (n,) bool, of each image by what was fitted on the other folds.
        taus: chosen by each fold; None where the untouched classifier was not beaten.
    """

    right: np.ndarray
    taus: list[float | None]


def cross_fit_tau(images: ImageIntervals, metric: str, folds: np.ndarray) -> CrossFitResult:
    """Choose tau on all folds but one, for each of them, and use it on that one: no pass over features is needed."""
    right, taus = np.zeros(len(images.labels), bool), []
    for fold in range(int(folds.max()) + 1):
        rows = folds == fold
        choice, _ = subset(images, ~rows).choose(metric)
        taus.append(choice.tau)
        right[rows] = (images.before_right if choice.tau is None else images.right_at(choice.tau))[rows]
    return CrossFitResult(right, taus)


def subset(images: ImageIntervals, rows: np.ndarray) -> ImageIntervals:
    """Return what is known of some images; `rows`: (n,) bool, or row numbers."""
    names = ('low', 'high', 'before_right', 'predicted', 'labels')
    return replace(images, **{name: getattr(images, name)[rows] for name in names})
