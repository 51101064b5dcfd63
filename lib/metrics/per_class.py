"""Errors of classes, with what a finite sample leaves uncertain."""

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike


def class_errors(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Count images and wrong predictions of each class.

    `labels` and `predicted` are integers (num_images,); a prediction of -1 (unreadable image) is wrong.
    Returns two int64 arrays (num_classes,).
    """
    num_images = np.bincount(labels, minlength=num_classes)
    return num_images, np.bincount(labels[labels != predicted], minlength=num_classes)


def binomial_interval(hits: ArrayLike, total: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of Wilson's interval (JASA 1927) of rates, each of the arguments' shape, float64.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),   p = hits / n

    Holds up at one image, where an error of 0 or 1 is no certainty; of no image it is 0 to 1.
    """
    hits, total = np.asarray(hits, np.float64), np.asarray(total, np.float64)
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    n = np.maximum(total, 1)
    rate = hits / n
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    reach = np.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    # The ends at no hit and at nothing but hits are exact; rounding must not take them.
    low = np.where(hits > 0, middle - reach, 0.0)
    high = np.where(hits < total, middle + reach, 1.0)
    return np.where(total > 0, low, 0.0), np.where(total > 0, high, 1.0)
