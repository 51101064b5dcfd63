"""Find labels that are probably wrong, what they should be, and the noise rate of each class."""

from dataclasses import dataclass

import numpy as np

from lib.metrics.intervals import binomial_interval
from lib.posthoc.noise_model import RATE_PRIOR, NoiseModel
from lib.posthoc.out_of_fold import Candidates

KINDS = ('fine', 'mislabeled', 'ambiguous', 'out_of_catalog', 'duplicate', 'cannot_tell')
FINE, MISLABELED, AMBIGUOUS, OUT_OF_CATALOG, DUPLICATE, CANNOT_TELL = range(len(KINDS))

_USUAL, _LEAST, _MOST = 0.6, 0.25, 0.99  # probabilities of an error above which an image is mislabeled
_DOUBT = 0.2  # and ambiguous
_OVERCONFIDENCE = 400.0  # a class of n images has 1 + 400 / n^2 times as many false positives as expected
_SPARE = 0.005  # correct images of any class size that may be flagged


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
        noise: per class, and of all.
    """

    error: np.ndarray
    proposal: np.ndarray
    probability: np.ndarray
    kind: np.ndarray
    noise: NoiseRates


def find_label_errors(candidates: Candidates, *, out_of_catalog: np.ndarray | None = None) -> Findings:
    """Find labels that are probably wrong, and what they should be.

    An image is mislabeled where the probability of an error is above a threshold of its class size, chosen so that the
    expected fraction of correct images that are flagged is the same for all sizes; ambiguous where it is above 0.2.

    Args:
        out_of_catalog: (n,) bool, images that fit no class.
    """
    model = NoiseModel(candidates)
    model.fit()
    proposal, probability = model.proposals()
    error = np.where(model.is_judged, model.error, np.nan).astype(np.float32)
    sizes = np.bincount(candidates.labels, minlength=candidates.num_classes)
    kind = np.full(len(error), FINE, np.uint8)
    kind[error > _DOUBT] = AMBIGUOUS
    kind[error > error_thresholds(error, sizes[candidates.labels])] = MISLABELED
    kind[~model.is_judged] = CANNOT_TELL
    if out_of_catalog is not None:
        kind[out_of_catalog] = OUT_OF_CATALOG
    return Findings(error, proposal, np.where(model.is_judged, probability, 0), kind, _noise_rates(model, candidates))


def error_thresholds(error: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the probability of an error above which each image is flagged, (n,) float32.

    It is 0.6, moved for each class size (below 5, 10, 20, 40... images) to where the expected fraction of correct
    images that are flagged, sum (1 - error) over flagged / sum (1 - error), is that of all images, or 0.5 % if that is
    more; between 0.25 and 0.99. The posterior of small classes is too sure: measured on Grocery with a long tail.

    Args:
        error: (n,); nan is left out.
        sizes: (n,) images with the label of each.
    """
    known = ~np.isnan(error)
    correct = np.where(known, 1 - error, 0).astype(np.float64)
    allowed = max(_SPARE, correct[error > _USUAL].sum() / max(1e-30, correct.sum()))
    groups = np.ceil(np.log2(np.maximum(sizes + 1, 5) / 5)).astype(np.int64)
    thresholds = np.full(len(error), _USUAL, np.float32)
    for group in np.unique(groups[known]):
        rows = np.flatnonzero(known & (groups == group))
        falling = rows[np.argsort(-error[rows], kind='stable')]
        flagged = np.cumsum(correct[falling] * (1 + _OVERCONFIDENCE / np.maximum(sizes[falling], 1.0) ** 2))
        number = int(np.searchsorted(flagged, allowed * correct[rows].sum(), side='right'))
        limit = error[falling[number]] if number < len(falling) else 0.0
        thresholds[groups == group] = np.clip(limit, _LEAST, _MOST)
    return thresholds


def _noise_rates(model: NoiseModel, candidates: Candidates) -> NoiseRates:
    wrong = np.bincount(candidates.labels, np.where(model.is_judged, model.error, 0), candidates.num_classes)
    total = np.bincount(candidates.labels[model.is_judged], minlength=candidates.num_classes)
    shrunk = wrong + RATE_PRIOR * model.rate, total + RATE_PRIOR
    low, high = binomial_interval(*shrunk)
    rate, low, high = (
        np.where(total > 0, ends, np.nan).astype(np.float32) for ends in (shrunk[0] / shrunk[1], low, high)
    )
    overall_low, overall_high = (float(end) for end in binomial_interval(wrong.sum(), total.sum()))
    overall = float(wrong.sum() / max(1, total.sum()))
    return NoiseRates(rate, low, high, overall, overall_low, overall_high, model.temperature, model.likeness)
