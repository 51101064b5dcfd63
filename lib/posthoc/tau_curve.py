"""A metric for every tau at once, from one sort of the images' intervals, and the choice of tau."""

import math
from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-12  # far below what one image can move a metric, far above float64 noise


@dataclass(frozen=True)
class Curve:
    """A metric as a function of tau: constant on open pieces, with a separate value at each break.

    Piece k lies between breaks[k - 1] and breaks[k]; the first begins at 0, the last ends at max_tau (a
    break at 0 leaves the first piece without width). At a break an image ties with a rival, which counts as
    wrong. Counts are weighted integers (`image_weights`), so that no rounding error accumulates along the
    curve and equal values are equal numbers.
    """

    metric: str  # 'mean_class_error' | 'top1'
    max_tau: float
    breaks: np.ndarray  # float64 (num_breaks,), ascending, within [0, max_tau]
    hits: np.ndarray  # int64 (num_breaks + 1,), weighted correct images on each piece
    hits_at_breaks: np.ndarray  # int64 (num_breaks,), the same at the breaks themselves
    total: int  # weight of all images

    @property
    def edges(self) -> np.ndarray:
        """The ends of the pieces, float64 (num_breaks + 2,)."""
        return np.concatenate([[0.0], self.breaks, [self.max_tau]])

    @property
    def values(self) -> np.ndarray:
        """The metric on each piece, mean_class_error an error, top1 an accuracy: (num_breaks + 1,)."""
        return self._value(self.hits)

    def at(self, tau: float) -> float:
        """Return the metric at a tau in [0, max_tau], ties counted as wrong. Raises ValueError outside."""
        if not 0 <= tau <= self.max_tau:
            raise ValueError(f'tau is {tau}: this curve covers 0 to {self.max_tau}')
        piece = int(np.searchsorted(self.breaks, tau))
        on_break = piece < len(self.breaks) and self.breaks[piece] == tau
        return float(self._value(self.hits_at_breaks[piece] if on_break else self.hits[piece]))

    def best_piece(self) -> int:
        """Return the number of the best piece: of equally good ones the widest, then the one at the smallest tau."""
        edges = self.edges
        low, high = edges[:-1], edges[1:]
        middle = (low + high) / 2
        inside = (low < middle) & (middle < high)  # a piece too thin to hold a float64 is no plateau
        best = self.hits == self.hits[inside].max()
        return int(np.where(best & inside, high - low, -1.0).argmax())

    def middle(self, piece: int) -> float:
        """Return the tau in the middle of a piece."""
        return float(self.edges[piece : piece + 2].mean())

    def as_dict(self) -> dict[str, list[float]]:
        """Return the curve for JSON: `tau`, the breaks, and `value`, one more: the metric on each piece."""
        return {'tau': self.breaks.tolist(), 'value': self.values.tolist()}

    def _value(self, hits: np.ndarray) -> np.ndarray:
        return (self.total - hits if self.metric == 'mean_class_error' else hits) / self.total


@dataclass(frozen=True)
class TauRange:
    """The chosen tau and the range that it is the middle of.

    Attributes:
        tau: None where the untouched checkpoint is not beaten.
        optimum: middle of the best piece.
        value: the metric at the optimum.
        standard_error: standard error of the metric at the optimum.
        ends: smallest and largest tau around the optimum within one standard error of it, and better than the
            untouched checkpoint.
    """

    tau: float | None
    optimum: float
    value: float
    standard_error: float
    ends: tuple[float, float]


def image_weights(labels: np.ndarray, num_classes: int, metric: str) -> tuple[np.ndarray, int]:
    """Return the integer weight of each image, and their sum: accuracy is sum(weights of correct images) / sum(all).

    For top1 each weighs 1. For mean_class_error an image of a class with n images weighs L / n, where L is
    the least common multiple of the class sizes: exact. Where L would not fit into int64, L is the largest
    number that does and the weights are rounded: for a million images that changes the metric by less than
    1e-12.

    Args: labels int (n,). Returns int64 (n,), int. Raises ValueError for another metric, or without any
    image.
    """
    if metric not in ('mean_class_error', 'top1'):
        raise ValueError(f"metric is '{metric}': choose 'mean_class_error' or 'top1'")
    if not len(labels):
        raise ValueError('a metric needs at least one labeled image')
    if metric == 'top1':
        return np.ones(len(labels), np.int64), len(labels)
    counts = np.bincount(labels, minlength=num_classes)
    most = 2**62 // int(np.count_nonzero(counts))
    multiple: int = math.lcm(*np.unique(counts[counts > 0]).tolist())
    of_class = (min(multiple, most) + counts // 2) // np.maximum(counts, 1)
    return of_class[labels], int((of_class * counts).sum())


def weighted_accuracy(correct: np.ndarray, labels: np.ndarray, num_classes: int, metric: str) -> float:
    """Return the accuracy on the integer scale of a curve, so that the two compare exactly.

    mean_class_error: averaged over the classes with images; top1: over the images.
    """
    weights, total = image_weights(labels, num_classes, metric)
    return int(weights[correct].sum()) / total


def sweep(
    low: np.ndarray, high: np.ndarray, labels: np.ndarray, num_classes: int, metric: str, max_tau: float
) -> Curve:
    """Compute the metric at every tau in [0, max_tau] from the images' open intervals, by one sort of their ends.

    Args: low, high float64 (n,) as `tau_intervals` gives them; labels int (n,);
        metric 'mean_class_error' | 'top1'.
    """
    weights, total = image_weights(labels, num_classes, metric)
    ever = low < high
    opens, closes = ever & np.isfinite(low), ever & np.isfinite(high)
    breaks, index = np.unique(np.concatenate([low[opens], high[closes]]), return_inverse=True)
    num_opens = np.count_nonzero(opens)
    gained, lost = np.zeros(len(breaks), np.int64), np.zeros(len(breaks), np.int64)
    np.add.at(gained, index[:num_opens], weights[opens])
    np.add.at(lost, index[num_opens:], weights[closes])
    start = weights[ever & ~np.isfinite(low)].sum()
    hits = start + np.concatenate([[0], np.cumsum(gained - lost)])
    return Curve(metric, float(max_tau), breaks, hits, hits[:-1] - lost, total)


def standard_error(correct: np.ndarray, labels: np.ndarray, num_classes: int, metric: str) -> float:
    """Return the standard error of the metric measured on these images.

    top1: sqrt(p (1 - p) / n), binomial. mean_class_error is a stratified mean over the K classes with images:

        SE^2 = 1/K^2 * sum over classes of p_c (1 - p_c) / (n_c - 1)         (unbiased for a binomial class)

    A single image gives no variance estimate: the S classes with one image are pooled, as if these came
    from one stratum (collapsed strata; Cochran, Sampling Techniques, 1977): each adds p (1 - p) S / (S - 1),
    p their common accuracy. That errs on the large side. A single such class takes the accuracy of all images
    for p.

    Args: correct bool (n,), labels int (n,). Returns a fraction.
    """
    if metric == 'top1':
        return math.sqrt(correct.mean() * (1 - correct.mean()) / len(correct))
    counts = np.bincount(labels, minlength=num_classes)
    rates = np.bincount(labels[correct], minlength=num_classes) / np.maximum(counts, 1)
    several, single = counts > 1, counts == 1
    variance = (rates[several] * (1 - rates[several]) / (counts[several] - 1)).sum()
    num_single = np.count_nonzero(single)
    if num_single > 1:
        p = rates[single].mean()
        variance += num_single * p * (1 - p) * num_single / (num_single - 1)
    elif num_single == 1:
        variance += correct.mean() * (1 - correct.mean())
    return math.sqrt(variance) / int(np.count_nonzero(counts))


def choose(curve: Curve, before: float, standard_error: float) -> TauRange:
    """Choose the middle of the range around the optimum within one standard error of it and better than before.

    Args: before is the accuracy (not error) of the untouched checkpoint under the curve's metric, from
    `weighted_accuracy`.
    """
    best = curve.best_piece()
    peak = curve.hits[best] / curve.total
    levels = np.empty(2 * len(curve.hits) - 1)  # pieces and the breaks between them, in order
    levels[0::2], levels[1::2] = curve.hits / curve.total, curve.hits_at_breaks / curve.total
    good = levels >= peak - standard_error - ROUNDING
    if beaten := peak > before + ROUNDING:
        good &= levels > before + ROUNDING
    good[2 * best] = True
    bad = np.flatnonzero(~good)
    left, right = bad[bad < 2 * best], bad[bad > 2 * best]
    edges = curve.edges
    low = edges[left[-1] // 2 + 1] if len(left) else 0.0
    high = edges[(right[0] + 1) // 2] if len(right) else curve.max_tau
    tau = float(low + high) / 2 if beaten else None
    value = float(curve.values[best])
    return TauRange(tau, curve.middle(best), value, standard_error, (float(low), float(high)))
