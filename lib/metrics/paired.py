"""Paired comparison of two models on the same images: only images on which they differ count."""

import math
from dataclasses import dataclass

import numpy as np

from lib.metrics.accuracy import mean_over_classes
from lib.metrics.intervals import NUM_DRAWS, difference_interval
from lib.metrics.predictions import Predictions


@dataclass(frozen=True)
class Comparison:
    """The comparison of a second model with a first one.

    Attributes:
        images: number of labeled images.
        only_first, only_second: images that only that model predicts correctly.
        p_value: p-value of McNemar's test that both are equally likely to be correct; over images of all classes.
        difference: mean class error of the second minus that of the first; below 0, the second is better.
        interval: (low, high) of the difference, 95 %.
    """

    images: int
    only_first: int
    only_second: int
    p_value: float
    difference: float
    interval: tuple[float, float]


def compare(
    first: Predictions, second: Predictions, num_classes: int, *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> Comparison:
    """Compare two models' predictions for the same images; those labeled -1 do not count.

    The interval is that of a paired bootstrap: which of the two models is correct is drawn jointly for an image, within
    its class, corrected for few images per class (lib.metrics.intervals).

    Raises:
        ValueError: the labels differ, so the images do; or no image has a label.
    """
    if not np.array_equal(first.labels, second.labels):
        raise ValueError('two models can be compared on the same images only, but their labels differ')
    known = first.labels >= 0
    if not known.any():
        raise ValueError('two models can be compared on labeled images only')
    total, gained, lost = (
        np.bincount(first.labels[rows], minlength=num_classes)
        for rows in (known, second.correct & ~first.correct, first.correct & ~second.correct)
    )
    low, high = difference_interval(gained, lost, total, num_draws=num_draws, seed=seed)
    only_first, only_second = int(lost.sum()), int(gained.sum())
    return Comparison(
        images=int(total.sum()),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
        difference=mean_over_classes(lost - gained, total),  # a gain in accuracy is a loss of error
        interval=(-high, -low),
    )


def paired_difference(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return the difference of two weighted means over the same images, second minus first, and its standard error.

        difference = sum_i w_i d_i,   standard error = sqrt(sum_i w_i^2 d_i^2),   d_i = second_i - first_i

    That is the standard error if the difference of each image is as likely positive as negative (two equally good
    models): then d_i^2 is the variance of d_i. So it needs no second image: with w_i = 1 / (C n_c), the mean over C
    classes, each class is a stratum, and a class of one image counts, where a sample variance does not exist. With
    w_i = 1 / n, and b + c images that only one of the models predicts correctly, a difference of at most k standard
    errors is McNemar's (b - c)^2 / (b + c) <= k^2; for k = 1 the sample variance of d_i gives the same decision.

    Args:
        first, second: (n,) bool or float values of the two models, such as correct predictions.
        weights: (n,) float64 weights of the images, see mean_weights.
    """
    difference = second.astype(np.float64) - first.astype(np.float64)
    weighted = weights * difference
    return float(weighted.sum()), math.sqrt(float(np.square(weighted).sum()))


def mean_weights(labels: np.ndarray, *, per_class: bool) -> np.ndarray:
    """Return the weights of a mean over the images, or over the classes that have images: (n,) float64 of sum 1.

    Args:
        labels: (n,) integers; images labeled -1 have weight 0.
        per_class: average over the images of each class first.
    """
    weights = np.zeros(len(labels))
    known = labels >= 0
    if per_class:
        total = np.bincount(labels[known])
        weights[known] = 1.0 / (total[labels[known]] * np.count_nonzero(total))
    else:
        weights[known] = 1.0 / max(int(known.sum()), 1)
    return weights


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test (Psychometrika, 1947).

    That is 2 P(X <= min(b, c)), X ~ Binomial(b + c, 1/2), at most 1. Exact for any number: the binomial's terms are
    summed from the largest down by their ratios, so no approximation for many images is needed.

    Args:
        only_first, only_second: b and c, images that only one of the models predicts correctly.
    """
    fewer, trials = min(only_first, only_second), only_first + only_second
    if 2 * fewer == trials:
        return 1.0
    largest = (
        math.lgamma(trials + 1) - math.lgamma(fewer + 1) - math.lgamma(trials - fewer + 1) - trials * math.log(2.0)
    )
    # P(X = k - 1) / P(X = k) = k / (trials - k + 1)
    counts = np.arange(fewer, 0, -1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(counts / (trials - counts + 1)))])
    return min(1.0, 2.0 * math.exp(largest) * float(np.exp(logs).sum()))
