"""Predictions that are given up when they are not sure enough: risk against coverage, and the threshold.

How far a model's confidence can be believed: expected calibration error and the bins behind it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_BINS = 15


def reliability(confidence: np.ndarray, right: np.ndarray, num_bins: int = NUM_BINS) -> dict[str, Any]:
    """Return the expected calibration error (Guo et al., ICML 2017) over bins of equal width, and the bins.

        ECE = sum over bins of |B| / n * |accuracy(B) - confidence(B)|,   B = images with confidence in (low, high]

    Args:
        confidence: (n,) probabilities of the predicted classes; n > 0.
        right: (n,) bool.

    Returns:
        ece, accuracy, confidence (means over all images) and bins: low, high, images, confidence, accuracy of each
        bin that has an image. Fractions.
    """
    confidence = confidence.astype(np.float64)
    # A bin's upper end belongs to it; a confidence of 0 goes to the first.
    places = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    images = np.bincount(places, minlength=num_bins)
    sums = np.bincount(places, confidence, num_bins)
    hits = np.bincount(places, right, num_bins)
    bins = [
        {
            'low': place / num_bins,
            'high': (place + 1) / num_bins,
            'images': int(images[place]),
            'confidence': float(sums[place] / images[place]),
            'accuracy': float(hits[place] / images[place]),
        }
        for place in np.flatnonzero(images).tolist()
    ]
    return {
        'ece': float(np.abs(hits - sums).sum() / len(confidence)),
        'accuracy': float(hits.sum() / len(confidence)),
        'confidence': float(sums.sum() / len(confidence)),
        'bins': bins,
    }


@dataclass(frozen=True)
class RiskCoverage:
    """The error among the images that are still answered, for every threshold of the confidence.

    Attributes:
        thresholds: (k,) float64, falling; an image is answered when its confidence is at least that.
        coverage: (k,) share of the images that are answered.
        risk: (k,) share of errors among those.
        num_answered: (k,) int64.
    """

    thresholds: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray
    num_answered: np.ndarray

    @property
    def area(self) -> float:
        """The mean risk over the coverages (AURC: Geifman, Uziel & El-Yaniv, ICLR 2019)."""
        steps = np.diff(self.coverage, prepend=0.0)
        return float((steps * self.risk).sum())


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> RiskCoverage:
    """Return the curve of (n,) confidences and whether the answers are right; equal confidences are one step.

    Raises:
        ValueError: no image.
    """
    if not len(confidence):
        raise ValueError('a risk-coverage curve needs at least one image')
    order = np.argsort(-confidence, kind='stable')
    sorted_confidence = confidence[order].astype(np.float64)
    num_answered = np.arange(1, len(order) + 1)
    num_wrong = np.cumsum(~right[order])
    last = np.append(sorted_confidence[1:] != sorted_confidence[:-1], True)  # of its step
    num_answered, num_wrong = num_answered[last], num_wrong[last]
    return RiskCoverage(
        sorted_confidence[last], num_answered / len(order), num_wrong / num_answered, num_answered.astype(np.int64)
    )


@dataclass(frozen=True)
class Threshold:
    """The smallest confidence that is answered; inf where nothing is sure enough, and the coverage is 0."""

    value: float
    coverage: float
    risk: float
    bound: float


def choose_threshold(curve: RiskCoverage, wanted: float, *, confidence_level: float = 0.95) -> Threshold:
    """Return the threshold of the largest coverage whose risk is at most `wanted`, with a bound for other images.

    The bound is the upper end of Clopper & Pearson's interval (1934) at `confidence_level`, one-sided; asking it, not
    the measured risk, keeps the promise on images that are like these (as SGR: Geifman & El-Yaniv, NeurIPS 2017,
    without its correction for having looked at several thresholds).
    """
    wrong = np.rint(curve.risk * curve.num_answered).astype(int)
    # From the largest coverage down: the first that holds is the one.
    for place in np.flatnonzero(curve.risk < wanted)[::-1].tolist():
        num_wrong, num_answered = int(wrong[place]), int(curve.num_answered[place])
        # The bound is at most `wanted` exactly when so few errors are that improbable at `wanted`.
        if _log_at_most(num_wrong, num_answered, wanted) <= math.log(1 - confidence_level):
            bound = upper_bound(num_wrong, num_answered, confidence_level)
            return Threshold(
                float(curve.thresholds[place]), float(curve.coverage[place]), num_wrong / num_answered, bound
            )
    return Threshold(math.inf, 0.0, 0.0, 0.0)


def upper_bound(num_wrong: int, num_images: int, confidence_level: float) -> float:
    """Return the error rate p at which at most num_wrong errors of num_images have probability 1 - confidence_level.

    By bisection of the binomial distribution's logarithm: exact to 1e-9, for any counts.
    """
    if num_wrong >= num_images:
        return 1.0
    low, high = num_wrong / num_images, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if _log_at_most(num_wrong, num_images, middle) > math.log(1 - confidence_level):
            low = middle
        else:
            high = middle
    return high


def _log_at_most(num_wrong: int, num_images: int, rate: float) -> float:
    """Return ln of the probability of at most num_wrong errors among more images than that, at an error rate."""
    counts = np.arange(num_wrong + 1)
    # ln of num_images over k, for k from 0 to num_wrong
    steps = np.log(num_images - counts[:-1]) - np.log(counts[1:])
    ways = np.concatenate([[0.0], np.cumsum(steps)])
    terms = ways + counts * math.log(rate) + (num_images - counts) * math.log1p(-rate)
    top = terms.max()
    return float(top + math.log(np.exp(terms - top).sum()))
