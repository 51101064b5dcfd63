"""Intervals of errors measured on few images per class: bootstrap intervals of class means, binomial intervals.

The classes are fixed, their images are a sample; the variance between training runs is not included. A plain stratified
bootstrap draws n_c images of the n_c that a class has, and estimates p (1 - p) / n_c where the unbiased variance is
p (1 - p) / (n_c - 1): half of it at two images, nothing at one. Three corrections:

- A class of n_c > 1 images is resampled n_c - 1 times (Rao & Wu, Resampling Inference With Complex Survey Data, JASA
  1988): the variance of its draws is unbiased.
- Classes of one image form one stratum (collapsed strata; Cochran, Sampling Techniques, 1977): S - 1 draws of their S
  images. That counts differences among these classes as chance, so it errs on the large side.
- Four images are added, half of them correct, give or take one: to the first order Wilson's interval (Agresti & Coull,
  Approximate Is Better than "Exact", The American Statistician 1998). For a difference of two models two are added, one
  in favor of either (Agresti & Min, Statistics in Medicine 2005). Without them a sample without mistakes would have an
  interval of width 0. They weigh as much as an average image, and vanish among many.

Classes with equal counts are one binomial, since sums of binomials with one rate are binomial: exact, and the cost of
the draws grows with the number of different counts, not of classes.

Limitation: where only one or two mistakes are expected (20 classes, 2 to 5 % wrong, 1 to 5 images each), intervals of
95 % cover about 90 %, and less for some sets of classes.
"""

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from lib.metrics.accuracy import count_per_class, mean_over_classes

NUM_DRAWS = 1000
LEVEL = 0.95
_BATCH = 1 << 20  # numbers drawn at a time: 8 MB each of a few arrays


def accuracy_draws(correct: np.ndarray, total: np.ndarray, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> np.ndarray:
    """Return draws of the mean accuracy over the classes that have images, (num_draws,) float64.

    Args:
        correct, total: (num_classes,) int64 correct predictions and images of each class.
        seed: equal seeds and counts give equal draws.

    Raises:
        ValueError: no class has an image.
    """
    rng = np.random.default_rng(seed)
    means, weight = _mean_draws(correct, np.zeros_like(correct), total, num_draws, rng)
    return (means * weight + rng.normal(2.0, 1.0, num_draws)) / (weight + 4)


def difference_draws(
    gained: np.ndarray, lost: np.ndarray, total: np.ndarray, *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> np.ndarray:
    """Return draws of the mean over classes of (gained - lost) / total, (num_draws,) float64.

    Args:
        gained: (num_classes,) int64 images that only the second of two models predicts correctly.
        lost: (num_classes,) int64 images that only the first one does.
        total: (num_classes,) int64 images of each class.

    Raises:
        ValueError: no class has an image.
    """
    rng = np.random.default_rng(seed)
    means, weight = _mean_draws(gained, lost, total, num_draws, rng)
    return (means * weight + rng.normal(0.0, 1.0, num_draws)) / (weight + 2)


def accuracy_interval(
    correct: np.ndarray, total: np.ndarray, *, num_draws: int = NUM_DRAWS, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Return the interval of the mean accuracy over the classes that have images; see accuracy_draws."""
    draws = accuracy_draws(correct, total, num_draws=num_draws, seed=seed)
    low, high = interval_of(draws, mean_over_classes(correct, total), level)
    return max(low, 0.0), min(high, 1.0)


def difference_interval(
    gained: np.ndarray,
    lost: np.ndarray,
    total: np.ndarray,
    *,
    num_draws: int = NUM_DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval of the mean over classes of (gained - lost) / total; see difference_draws."""
    draws = difference_draws(gained, lost, total, num_draws=num_draws, seed=seed)
    low, high = interval_of(draws, mean_over_classes(gained - lost, total), level)
    return max(low, -1.0), min(high, 1.0)


def interval_of(draws: np.ndarray, estimate: float, level: float = LEVEL) -> tuple[float, float]:
    """Return the normal interval of draws, extended to contain the estimate.

    Not the draws' percentiles: near 0 and 1 these are biased, since few mistakes in a sample are compatible with many
    more in the population, but not with many fewer.
    """
    reach = NormalDist().inv_cdf((1 + level) / 2) * float(draws.std())
    middle = float(draws.mean())
    return min(middle - reach, estimate), max(middle + reach, estimate)


def _mean_draws(
    gained: np.ndarray, lost: np.ndarray, total: np.ndarray, num_draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return draws of the mean of (gained - lost) / total over classes, and the effective number of images.

    That is Kish's number: 1 / sum of squared weights, where an image of class c weighs 1 / (K n_c).
    """
    has_images = total > 0
    if not has_images.any():
        raise ValueError('an interval needs at least one image')
    gained, lost, total = gained[has_images], lost[has_images], total[has_images]
    single = total == 1
    sums = _sums_of_several(gained[~single], lost[~single], total[~single], num_draws, rng)
    num_single = int(single.sum())
    if num_single:
        plus, minus = int(gained[single].sum()), int(lost[single].sum())
        if num_single > 1:
            rates, trials = np.array([plus / num_single, minus / num_single]), num_single - 1
        else:  # a single such class takes the rates of all images
            rates, trials = np.array([gained.sum() / total.sum(), lost.sum() / total.sum()]), 1
        drawn = _trinomial(np.array(trials), rates[0], rates[1], num_draws, rng) / trials
        sums += (plus - minus) + num_single * (drawn - (rates[0] - rates[1]))
    return sums / len(total), len(total) ** 2 / float((1 / total).sum())


def _sums_of_several(
    gained: np.ndarray, lost: np.ndarray, total: np.ndarray, num_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Return draws of the sum over classes of (gained - lost) / total, every total above 1."""
    sums = np.zeros(num_draws)
    if not len(total):
        return sums
    base = int(total.max()) + 1  # its cube fits 64 bits up to two million images per class
    keys, num_alike = np.unique((total * base + gained) * base + lost, return_counts=True)
    total, gained, lost = keys // base**2, keys // base % base, keys % base
    # Counts with a single outcome need no draws.
    fixed = (gained == total) | (lost == total) | (gained + lost == 0)
    sums += float((num_alike * (gained - lost) / total)[fixed].sum())
    total, gained, lost, num_alike = (values[~fixed] for values in (total, gained, lost, num_alike))
    batch = max(1, _BATCH // max(1, len(total)))
    for start in range(0, num_draws, batch):
        rows = min(batch, num_draws - start)
        drawn = _trinomial(num_alike * (total - 1), gained / total, lost / total, rows, rng)
        sums[start : start + rows] += drawn @ (1 / (total - 1))
    return sums


def _trinomial(
    trials: np.ndarray, plus: np.ndarray, minus: np.ndarray, num_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Return sums of `trials` draws that are +1 and -1 at the given rates, else 0: (num_draws, *trials.shape)."""
    shape = (num_draws, *trials.shape)
    up = rng.binomial(trials, plus, shape)
    if not minus.any():
        return up
    rest = np.divide(minus, 1 - plus, out=np.zeros(trials.shape), where=plus < 1)
    return up - rng.binomial(trials - up, np.minimum(rest, 1.0))


def class_errors(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images and wrong predictions of each class, (num_classes,) int64 each.

    Args:
        labels, predicted: (num_images,) integers; a prediction of -1 (unreadable image) is wrong.
    """
    wrong, images = count_per_class(labels, labels != predicted, num_classes)
    return images, wrong


def binomial_interval(hits: ArrayLike, total: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of Wilson's interval (JASA 1927) of rates, each of the arguments' shape, float64.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),   p = hits / n

    Valid at one image too, where the rate is 0 or 1; without images it is 0 to 1.
    """
    hits, total = np.asarray(hits, np.float64), np.asarray(total, np.float64)
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    n = np.maximum(total, 1)
    rate = hits / n
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    reach = np.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    # The ends without hits and without misses are exact in spite of rounding.
    low = np.where(hits > 0, middle - reach, 0.0)
    high = np.where(hits < total, middle + reach, 1.0)
    return np.where(total > 0, low, 0.0), np.where(total > 0, high, 1.0)
