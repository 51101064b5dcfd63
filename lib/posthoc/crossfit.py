"""Cross-fitting: a method is fitted on some folds and measured on the others."""

from dataclasses import dataclass, replace

import numpy as np

from lib.posthoc.tau_sweep import ImageIntervals

NUM_FOLDS = 5


def stratified_folds(labels: np.ndarray, num_folds: int = NUM_FOLDS, *, seed: int = 0) -> np.ndarray:
    """Return the fold of each image, (n,) int64 from 0: each class is spread over the folds as evenly as possible.

    Args:
        labels: (n,) classes.
        seed: equal seeds and labels give equal folds.

    Raises:
        ValueError: fewer than two folds, or fewer images than folds.
    """
    if num_folds < 2 or len(labels) < num_folds:
        raise ValueError(f'{num_folds} folds of {len(labels)} images: needs 2 folds or more, and an image for each')
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind='stable')]
    # Assigned in turn through all classes: classes of one image are spread over the folds too.
    folds = np.empty(len(labels), np.int64)
    folds[order] = np.arange(len(labels)) % num_folds
    return folds


@dataclass(frozen=True)
class CrossFitResult:
    """Results on images that tau was not chosen on.

    Attributes:
        correct: (n,) bool, for each image with the tau that the other folds choose.
        taus: chosen for each fold; None where the untouched classifier was not beaten.
    """

    correct: np.ndarray
    taus: list[float | None]


def cross_fit_tau(images: ImageIntervals, metric: str, folds: np.ndarray) -> CrossFitResult:
    """Choose tau on all folds but one, for each of them, and apply it to that one; no pass over features is needed.

    Args:
        metric: 'mean_class_error' or 'top1'.
        folds: (n,) int64 fold of each image.
    """
    correct, taus = np.zeros(len(images.labels), bool), []
    for fold in range(int(folds.max()) + 1):
        rows = folds == fold
        chosen, _ = subset(images, ~rows).choose(metric)
        taus.append(chosen.tau)
        correct[rows] = (images.before_correct if chosen.tau is None else images.correct_at(chosen.tau))[rows]
    return CrossFitResult(correct, taus)


def subset(images: ImageIntervals, rows: np.ndarray) -> ImageIntervals:
    """Return the intervals of some images; rows: (n,) bool, or row numbers."""
    return replace(
        images,
        low=images.low[rows],
        high=images.high[rows],
        before_correct=images.before_correct[rows],
        predicted=images.predicted[rows],
        labels=images.labels[rows],
    )
