"""The pairs of classes that are confused most, found without a num_classes x num_classes matrix."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ConfusedPair:
    """Images of class `label` that were taken for class `predicted`."""

    label: int
    predicted: int
    rows: np.ndarray  # (num_mistakes,) int64, ascending
    num_images: int  # of class `label`
    num_reverse: int  # images of `predicted` taken for `label`

    @property
    def share(self) -> float:
        """Fraction of the class's images that were taken for the other one."""
        return len(self.rows) / self.num_images


def most_confused(labels: np.ndarray, predicted: np.ndarray, limit: int = 10) -> list[ConfusedPair]:
    """Return the `limit` most frequent (label, predicted) pairs of unequal classes, most frequent first.

    `labels` and `predicted` are integers (num_images,); negative predictions (unreadable images) are no
    confusion and left out. Ties go to the larger share of the class, then to the smaller class numbers.
    Memory is O(num_images).
    """
    labels, predicted = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    wrong = np.flatnonzero((labels != predicted) & (predicted >= 0))
    if len(wrong) == 0:
        return []
    base = int(max(labels.max(), predicted.max())) + 1  # 10^7 classes squared still fit in 64 bits
    keys = labels[wrong] * base + predicted[wrong]
    pairs, counts = np.unique(keys, return_counts=True)
    class_images = np.bincount(labels, minlength=base)
    shares = counts / class_images[pairs // base]
    order = np.lexsort((pairs, -shares, -counts))[:limit]

    def count_of(label: int, other: int) -> int:
        key = label * base + other
        place = int(np.searchsorted(pairs, key))
        return int(counts[place]) if place < len(pairs) and pairs[place] == key else 0

    confused = []
    for place in order:
        label, other = divmod(int(pairs[place]), base)
        rows = wrong[keys == pairs[place]]
        confused.append(ConfusedPair(label, other, rows, int(class_images[label]), count_of(other, label)))
    return confused
