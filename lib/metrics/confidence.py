"""Confidence: calibration, risk-coverage curve, and the threshold below which a model abstains."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.dataset.index import ranks_in_classes
from lib.metrics.predictions import Predictions

NUM_BINS = 15
HALF = 0.5  # confidence below which images are counted where no threshold is chosen


def reliability(confidence: np.ndarray, correct: np.ndarray, num_bins: int = NUM_BINS) -> dict[str, Any]:
    """Compute the expected calibration error (Guo et al., ICML 2017) over bins of equal width, and the bins.

        ECE = sum over bins of |B| / n * |accuracy(B) - confidence(B)|,   B = images with confidence in (low, high]

    Args:
        confidence: (n,) probabilities of the predicted classes; n > 0.
        correct: (n,) bool.

    Returns:
        ece, accuracy, confidence (means over all images) and bins: low, high, images, confidence, accuracy of each
        bin that has an image. Fractions.
    """
    confidence = confidence.astype(np.float64)
    # A bin's upper end belongs to it; a confidence of 0 goes to the first.
    bin_index = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    images = np.bincount(bin_index, minlength=num_bins)
    sums = np.bincount(bin_index, confidence, num_bins)
    hits = np.bincount(bin_index, correct, num_bins)
    bins = [
        {
            'low': index / num_bins,
            'high': (index + 1) / num_bins,
            'images': int(images[index]),
            'confidence': float(sums[index] / images[index]),
            'accuracy': float(hits[index] / images[index]),
        }
        for index in np.flatnonzero(images).tolist()
    ]
    return {
        'ece': float(np.abs(hits - sums).sum() / len(confidence)),
        'accuracy': float(hits.sum() / len(confidence)),
        'confidence': float(sums.sum() / len(confidence)),
        'bins': bins,
    }


@dataclass(frozen=True)
class CalibrationCurve:
    """Accuracy as a function of the confidence that never falls: a step function.

    Attributes:
        starts: (k,) float64, ascending: the smallest confidence of each step.
        accuracies: (k,) float64, ascending, from 0 to 1.
    """

    starts: np.ndarray
    accuracies: np.ndarray

    def __call__(self, confidence: np.ndarray) -> np.ndarray:
        """Return the accuracy at each confidence (n,); below the first step, that of the first."""
        steps = np.searchsorted(self.starts, confidence.astype(np.float64), side='right') - 1
        return self.accuracies[np.maximum(steps, 0)]


def calibration_curve(confidence: np.ndarray, correct: np.ndarray) -> CalibrationCurve:
    """Fit the accuracy at a confidence by isotonic regression (Zadrozny & Elkan, KDD 2002).

    Neighboring confidences are pooled until no pool is less accurate than the one before, so the accuracy of each step
    is the one measured on its images.

    Args:
        confidence: (n,) probabilities of the predicted classes; n > 0.
        correct: (n,) bool.
    """
    starts, step_of = np.unique(confidence.astype(np.float64), return_inverse=True)
    sizes, hits = np.bincount(step_of), np.bincount(step_of, correct)
    pools: list[tuple[float, float, int]] = []  # start, correct predictions, images
    for start, num_hits, size in zip(starts.tolist(), hits.tolist(), sizes.tolist(), strict=True):
        pool = (start, num_hits, size)
        while pools and pools[-1][1] * pool[2] >= pool[1] * pools[-1][2]:  # not more accurate than the one before
            before = pools.pop()
            pool = (before[0], before[1] + pool[1], before[2] + pool[2])
        pools.append(pool)
    return CalibrationCurve(
        np.array([start for start, _, _ in pools]), np.array([num_hits / size for _, num_hits, size in pools])
    )


@dataclass(frozen=True)
class ConfidenceSummary:
    """Confidence over images, of which those that cannot be decoded have none.

    Attributes:
        mean: over the readable images; NaN without any.
        num_below: readable images of a confidence below the threshold, or below HALF without a threshold.
    """

    num_readable: int
    num_unreadable: int
    mean: float
    num_below: int


def summarize_confidence(predictions: Predictions, threshold: float | None = None) -> ConfidenceSummary:
    """Return the mean confidence and the number of images below a threshold; None: below HALF."""
    confidence = predictions.confidence[predictions.predicted >= 0].astype(np.float64)
    limit = HALF if threshold is None else threshold
    return ConfidenceSummary(
        len(confidence),
        len(predictions) - len(confidence),
        float(confidence.mean()) if len(confidence) else math.nan,
        int((confidence < limit).sum()),
    )


@dataclass(frozen=True)
class RiskCoverage:
    """The error among the accepted images, for every threshold of the confidence.

    Attributes:
        thresholds: (k,) float64, descending; an image is accepted when its confidence is at least that.
        coverage: (k,) fraction of the images that are accepted.
        risk: (k,) fraction of errors among those.
        num_accepted: (k,) int64.
    """

    thresholds: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray
    num_accepted: np.ndarray

    @property
    def area(self) -> float:
        """The mean risk over the coverages (AURC: Geifman, Uziel & El-Yaniv, ICLR 2019)."""
        steps = np.diff(self.coverage, prepend=0.0)
        return float((steps * self.risk).sum())


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> RiskCoverage:
    """Compute the risk-coverage curve; equal confidences are one step.

    Args:
        confidence: (n,) probabilities of the predicted classes.
        correct: (n,) bool.

    Raises:
        ValueError: no image.
    """
    if not len(confidence):
        raise ValueError('a risk-coverage curve needs at least one image')
    order = np.argsort(-confidence, kind='stable')
    sorted_confidence = confidence[order].astype(np.float64)
    num_accepted = np.arange(1, len(order) + 1)
    num_wrong = np.cumsum(~correct[order])
    last = np.append(sorted_confidence[1:] != sorted_confidence[:-1], True)  # of its step
    num_accepted, num_wrong = num_accepted[last], num_wrong[last]
    return RiskCoverage(
        sorted_confidence[last], num_accepted / len(order), num_wrong / num_accepted, num_accepted.astype(np.int64)
    )


@dataclass(frozen=True)
class Threshold:
    """The chosen threshold.

    Attributes:
        value: the smallest confidence that is accepted; inf where no threshold holds the risk, and the coverage is 0.
        coverage, risk: coverage and risk of the images that it was chosen on.
        bound: upper confidence bound of the risk.
    """

    value: float
    coverage: float
    risk: float
    bound: float


def choose_threshold(curve: RiskCoverage, max_risk: float, *, confidence_level: float = 0.95) -> Threshold:
    """Choose the threshold of the largest coverage whose upper bound of the risk is at most `max_risk`.

    The bound is the upper end of Clopper & Pearson's interval (1934) at `confidence_level`, one-sided; the bound, not
    the measured risk, limits the error on other images of the same distribution (as SGR: Geifman & El-Yaniv, NeurIPS
    2017, without its correction for multiple thresholds).
    """
    wrong = np.rint(curve.risk * curve.num_accepted).astype(int)
    # From the largest coverage down, the first that holds the bound is chosen.
    for index in np.flatnonzero(curve.risk < max_risk)[::-1].tolist():
        num_wrong, num_accepted = int(wrong[index]), int(curve.num_accepted[index])
        # The bound is at most max_risk exactly when so few errors have a probability below 1 - level at max_risk.
        if _log_at_most(num_wrong, num_accepted, max_risk) <= math.log(1 - confidence_level):
            bound = upper_bound(num_wrong, num_accepted, confidence_level)
            return Threshold(
                float(curve.thresholds[index]), float(curve.coverage[index]), num_wrong / num_accepted, bound
            )
    return Threshold(math.inf, 0.0, 0.0, 0.0)


def smallest_bound(curve: RiskCoverage) -> float:
    """Return about the smallest upper bound of the risk, at 95 %, that a threshold can hold: below it, none is found.

    Among thresholds with the same number of errors, only the one with most images is tried; above 100 errors, where
    neighboring thresholds differ little, one in a hundred.
    """
    wrong = np.rint(curve.risk * curve.num_accepted).astype(int)
    last = np.flatnonzero(np.diff(wrong, append=wrong[-1] + 1))
    rows = np.concatenate([last[:100], last[100::100]]).tolist()
    return min(upper_bound(int(wrong[row]), int(curve.num_accepted[row])) for row in rows)


def upper_bound(num_wrong: int, num_images: int, confidence_level: float = 0.95) -> float:
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


def risk_in_mix(accepted: Predictions, classes: np.ndarray) -> float:
    """Return the error of accepted predictions if their classes were as frequent as in `classes` (k,), k > 0.

    A class that is never among the accepted predictions counts with the error of all of them.
    """
    num_classes = 1 + int(max(accepted.predicted.max(), classes.max()))
    totals = np.bincount(accepted.predicted, minlength=num_classes)
    wrong = np.bincount(accepted.predicted, ~accepted.correct, num_classes)
    errors = np.divide(wrong, totals, out=np.full(num_classes, (~accepted.correct).mean()), where=totals > 0)
    return float(errors[classes].mean())


def first_per_class(classes: np.ndarray, limit: int) -> np.ndarray:
    """Return the positions of the first `limit` entries of each class in `classes` (n,), grouped by class."""
    order = np.argsort(classes, kind='stable')
    return order[ranks_in_classes(classes)[order] < limit]


def _log_at_most(num_wrong: int, num_images: int, rate: float) -> float:
    """Return ln of the probability of at most num_wrong errors among more images than that, at an error rate."""
    counts = np.arange(num_wrong + 1)
    # ln of num_images over k, for k from 0 to num_wrong
    steps = np.log(num_images - counts[:-1]) - np.log(counts[1:])
    log_combinations = np.concatenate([[0.0], np.cumsum(steps)])
    terms = log_combinations + counts * math.log(rate) + (num_images - counts) * math.log1p(-rate)
    top = terms.max()
    return float(top + math.log(np.exp(terms - top).sum()))
