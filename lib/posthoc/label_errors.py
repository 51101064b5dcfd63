"""Find labels that are probably wrong, what they should be, and the noise rate of each class."""

from dataclasses import dataclass

import numpy as np

from lib.metrics.intervals import binomial_interval
from lib.posthoc.noise_model import NoiseModel
from lib.posthoc.out_of_fold import Candidates

KINDS = ('fine', 'mislabeled', 'ambiguous', 'out_of_catalog', 'duplicate', 'cannot_tell')
FINE, MISLABELED, AMBIGUOUS, OUT_OF_CATALOG, DUPLICATE, CANNOT_TELL = range(len(KINDS))

_LEAST, _MOST = 0.1, 0.9999  # ends of the threshold above which an image is mislabeled
_DOUBT = 0.2  # the least threshold above which it is ambiguous
_SMALL = 7.0  # images: in a class of n, the log-odds of an error are divided by 1 + (_SMALL / n)^2
_MOST_FLAGGED, _FLAGGED_PER_WRONG = 0.02, 0.06  # fraction of correct images that may be flagged: at most, and by odds
_CLASS_PRIOR = 5.0  # images that the mean and variance of a class's margins are worth beforehand
_SURE = 0.95  # probability of a proposal which an image fits, even if it seems out of the catalog


@dataclass(frozen=True)
class NoiseRates:
    """The noise that a model has found.

    Attributes:
        rate, low, high: (num_classes,) float32 fraction of wrong labels among the images with each label, shrunk toward
            that of all, and the ends of its 95 % interval; nan for classes without images that can be judged.
        overall, overall_low, overall_high: fraction of wrong labels among all images, and the ends of its interval.
        temperature: inverse, by which the logits are multiplied.
        likeness: 0 where wrong labels are any class, 1 where they are classes that look alike.
    """

    rate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    overall: float
    overall_low: float
    overall_high: float
    temperature: float
    likeness: float


@dataclass(frozen=True)
class Findings:
    """Errors, proposals and kinds of the labels of n images.

    Attributes:
        error: (n,) float32 probability that the label is wrong; nan: not judged.
        proposal: (n,) int32, the most likely class other than the label; -1: none.
        probability: (n,) float32, that the proposal is the true class.
        kind: (n,) uint8, index into KINDS.
        agreement: (n,) float32 fraction of the votes of the nearest neighbors that is for the label, whatever the size
            of its class (see votes_for_classes); nan without neighbors.
        noise: per class, and of all.
    """

    error: np.ndarray
    proposal: np.ndarray
    probability: np.ndarray
    kind: np.ndarray
    agreement: np.ndarray
    noise: NoiseRates


def find_label_errors(
    candidates: Candidates, *, out_of_catalog: np.ndarray | None = None, margins: np.ndarray | None = None
) -> Findings:
    """Find labels that are probably wrong, and what they should be.

    An image is mislabeled where the probability of an error is above a threshold of its class size, chosen so that the
    expected fraction of correct images that are flagged is the same for all sizes; ambiguous where it is above the
    threshold for twice that fraction, or above 0.2 if that is more. A mislabeled image with a sure proposal is not out
    of the catalog.

    Args:
        out_of_catalog: (n,) bool, images that fit no class.
        margins: (n,) area under the margin of each image, if a run has recorded it; nan: not known.
    """
    model = NoiseModel(candidates)
    model.fit()
    proposal, probability = model.proposals()
    sizes = np.bincount(candidates.labels, minlength=candidates.num_classes)[candidates.labels]
    error = np.where(model.is_judged, model.error, np.nan)
    if margins is not None:
        error = error_given_margins(error, margins, candidates.labels)
    error = calibrated_error(error, sizes)
    probability = np.where(model.is_judged, probability * error / np.maximum(model.error, 1e-12), 0)
    kind = np.full(len(error), FINE, np.uint8)
    kind[error > np.maximum(_DOUBT, error_thresholds(error, sizes, 2.0))] = AMBIGUOUS
    kind[error > error_thresholds(error, sizes)] = MISLABELED
    kind[~model.is_judged] = CANNOT_TELL
    if out_of_catalog is not None:
        kind[out_of_catalog & ~((kind == MISLABELED) & (probability > _SURE))] = OUT_OF_CATALOG
    return Findings(error, proposal, probability, kind, model.agreement, _noise_rates(model, error, candidates))


def error_given_margins(error: np.ndarray, margins: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return probabilities of errors (n,) float32 that include the area under the margin (AUM) of each image.

    A mislabeled image has a low one (Pleiss et al., NeurIPS 2020). It is compared with the others of its class: minus
    their mean, divided by their standard deviation, where each counts by the probability that its label is right, and
    all images count as some of the class. The mean of that among right and among wrong labels, and its variance, give
    the likelihood ratio of two Gaussians. Its square root multiplies the odds, as the logits are evidence, too, of what
    a network learns.

    Args:
        error: (n,) probability without it; nan stays.
        margins: (n,) from the record of a run (TRAIN.TRACK_SAMPLES); nan is no evidence.
        labels: (n,) int64.
    """
    known = np.isfinite(margins) & np.isfinite(error)
    wrong, y, values = error[known].astype(np.float64), labels[known], margins[known].astype(np.float64)
    right = 1 - wrong
    if min(wrong.sum(), right.sum()) < 1:
        return error

    def of_others(values: np.ndarray) -> np.ndarray:
        sums, counts = np.bincount(y, right * values), np.bincount(y, right)
        overall = _CLASS_PRIOR * (right @ values) / right.sum()
        return (sums[y] - right * values + overall) / (counts[y] - right + _CLASS_PRIOR)

    relative = values - of_others(values)
    relative /= np.sqrt(np.maximum(of_others(relative**2), 1e-12))
    if_right, if_wrong = right @ relative / right.sum(), wrong @ relative / wrong.sum()
    if if_wrong >= if_right:
        return error  # there is no sign of wrong labels in it
    variance = (right @ (relative - if_right) ** 2 + wrong @ (relative - if_wrong) ** 2) / len(relative)
    log_ratio = (if_wrong - if_right) / max(variance, 1e-12) * (relative - (if_wrong + if_right) / 2)
    odds = wrong / np.maximum(right, 1e-7) * np.exp(np.clip(log_ratio / 2, -20, 20))
    changed = error.copy()
    changed[known] = odds / (1 + odds)
    return changed


def calibrated_error(error: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return probabilities of errors (n,) float32 that hold for small classes, too.

    The mean of a few images, some of them mislabeled, is far from the class, so the posterior is too sure of errors:
    its log-odds above 0 are divided by 1 + (7 / n)^2 in a class of n images, as measured on Grocery with a long tail.

    Args:
        error: (n,) posterior probability of an error; nan stays.
        sizes: (n,) images with the label of each.
    """
    bounded = np.clip(error, 0, 1 - 1e-7, dtype=np.float64)
    odds = (bounded / (1 - bounded)) ** (1 / (1 + (_SMALL / np.maximum(sizes, 1.0)) ** 2))
    return np.where(bounded > 0.5, odds / (1 + odds), bounded).astype(np.float32)


def error_thresholds(error: np.ndarray, sizes: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """Return the probability of an error above which each image is flagged, (n,) float32.

    It is that of each class size (below 5, 10, 20, 40... images) where the expected fraction of correct images that are
    flagged, sum (1 - error) over flagged / sum (1 - error), is 6 % of the odds of an error, at most 2 %: the same for
    all sizes. It is between 0.1 and 0.9999.

    Args:
        error: (n,); nan is left out.
        sizes: (n,) images with the label of each.
        factor: factor of the fraction.
    """
    known = ~np.isnan(error)
    correct = np.where(known, 1 - error, 0).astype(np.float64)
    odds = (known.sum() - correct.sum()) / max(1e-30, correct.sum())
    allowed = factor * min(_MOST_FLAGGED, _FLAGGED_PER_WRONG * odds)
    groups = np.ceil(np.log2(np.maximum(sizes + 1, 5) / 5)).astype(np.int64)
    thresholds = np.full(len(error), _MOST, np.float32)
    for group in np.unique(groups[known]):
        rows = np.flatnonzero(known & (groups == group))
        falling = rows[np.argsort(-error[rows], kind='stable')]
        number = int(np.searchsorted(np.cumsum(correct[falling]), allowed * correct[rows].sum(), side='right'))
        limit = error[falling[number]] if number < len(falling) else 0.0
        thresholds[groups == group] = np.clip(limit, _LEAST, _MOST)
    return thresholds


def _noise_rates(model: NoiseModel, error: np.ndarray, candidates: Candidates) -> NoiseRates:
    wrong = np.bincount(candidates.labels, np.where(model.is_judged, error, 0), candidates.num_classes)
    total = np.bincount(candidates.labels[model.is_judged], minlength=candidates.num_classes)
    shrunk = wrong + model.rate_prior * model.rate, total + model.rate_prior
    low, high = binomial_interval(*shrunk)
    rate, low, high = (
        np.where(total > 0, ends, np.nan).astype(np.float32) for ends in (shrunk[0] / shrunk[1], low, high)
    )
    overall_low, overall_high = (float(end) for end in binomial_interval(wrong.sum(), total.sum()))
    overall = float(wrong.sum() / max(1, total.sum()))
    return NoiseRates(rate, low, high, overall, overall_low, overall_high, model.weights[0], model.likeness)
