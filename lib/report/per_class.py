"""Error of classes and of groups of them, with what a finite sample leaves uncertain."""

from typing import NamedTuple

import numpy as np

from lib.evaluation.sweep import accuracy, standard_error


class SampledError(NamedTuple):
    """An error with its standard error, both fractions."""

    error: float
    standard_error: float


def class_errors(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Count images and wrong predictions of each class.

    `labels` and `predicted` are integers (num_images,); a prediction of -1 (unreadable image) is wrong.
    Returns two int64 arrays (num_classes,).
    """
    num_images = np.bincount(labels, minlength=num_classes)
    return num_images, np.bincount(labels[labels != predicted], minlength=num_classes)


def sampled_error(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int, metric: str = 'mean_class_error'
) -> SampledError | None:
    """Return the mean per-class error (or the top-1 error, by `metric`) of these images; None without images.

    `labels` and `predicted` are integers (num_images,). The standard error is binomial, within each class for
    the mean per-class error: the classes are given, their images are a sample.
    """
    if len(labels) == 0:
        return None
    right = labels == predicted
    error = 1 - accuracy(right, labels, num_classes, metric)
    return SampledError(error, standard_error(right, labels, num_classes, metric))
