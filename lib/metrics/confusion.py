"""The pairs of classes that are confused most, found without a num_classes x num_classes matrix.

How bad a mistake is by the product tree: a wrong apple is a smaller one than a wrong kind of thing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


class ProductTree:
    """The tree that the classes' ancestors make: the classes are its leaves, nodes are paths from the root.

    Equal names under different parents are different nodes. A class whose ancestors are not known (an empty list) has
    no place in it.

    Args:
        parents: of each class, its ancestors from the root down, as in classes.json.
    """

    def __init__(self, parents: Sequence[Sequence[str]]) -> None:
        depths = np.fromiter(map(len, parents), np.int64, len(parents))  # (num_classes,)
        deepest = int(depths.max(initial=0))
        # (num_classes, deepest) node of each level; -1 beyond a class's last ancestor.
        nodes = np.full((len(parents), deepest), -1, np.int64)
        numbers: dict[tuple[int, str], int] = {}
        for row, chain in enumerate(parents):
            node = -1
            for level, name in enumerate(chain):
                node = nodes[row, level] = numbers.setdefault((node, name), len(numbers))
        # A node's height is the longest way down to a class: a class's own is 0. The last entry is the root above all.
        heights = np.zeros(len(numbers) + 1, np.int64)
        for level in range(deepest):
            reaches = depths > level
            np.maximum.at(heights, nodes[reaches, level], depths[reaches] - level)
        heights[-1] = deepest + 1
        self._nodes, self._depths, self._heights = nodes, depths, heights

    @property
    def has_place(self) -> np.ndarray:
        """Which classes have known ancestors, (num_classes,) bool."""
        return self._depths > 0

    @property
    def height(self) -> int:
        """What the worst mistake weighs: the height of the lowest node above all classes."""
        placed = self._nodes[self.has_place]
        if not len(placed):
            return 0
        common = (placed == placed[0]).all(axis=0) & (placed[0] >= 0)
        return int(self._heights[placed[0][int(common.sum()) - 1] if common.any() else -1])

    def severity(self, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Return the height of the lowest common ancestor of two classes each, (n,) int64; 0 for the same class.

        Args:
            labels, predicted: (n,) int64 classes that have a place.
        """
        one, other = self._nodes[labels], self._nodes[predicted]
        # Nodes are paths, so that two chains that part never meet again.
        common = ((one == other) & (one >= 0)).sum(axis=1)
        if one.shape[1]:
            lowest = np.where(common > 0, one[np.arange(len(one)), np.maximum(common - 1, 0)], -1)
        else:
            lowest = np.full(len(one), -1)
        return np.where(labels == predicted, 0, self._heights[lowest])

    def same_parent(self, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Return whether two classes each are children of one node, (n,) bool; both have a place."""
        return self._parent(labels) == self._parent(predicted)

    def _parent(self, classes: np.ndarray) -> np.ndarray:
        return self._nodes[classes, self._depths[classes] - 1]


def tree_metrics(labels: np.ndarray, predicted: np.ndarray, parents: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return coarse accuracy and mean mistake severity (Bertinetto et al., Making Better Mistakes, CVPR 2020).

    Args:
        labels: (n,) int64, none below 0.
        predicted: (n,) int64, -1 where the image could not be decoded: coarsely wrong too, but of no severity.
        parents: (num_classes) ancestors of each class, root first; [] where not known. Images of such a class do not
            count, nor do mistakes for one.

    Returns:
        coarse_accuracy: fraction of images whose predicted class has the label's parent.
        mistake_severity: mean height of the lowest common ancestor of label and prediction over mistakes.
        worst_severity: height of the lowest node above all classes, the most that a mistake can weigh.
        severities: how many mistakes there are of each height, {height: number}.
        What has no image, or no mistake, is absent.
    """
    tree = ProductTree(parents)
    placed = tree.has_place[labels]
    labels, predicted = labels[placed], predicted[placed]
    if not len(labels):
        return {}
    comparable = (predicted >= 0) & tree.has_place[predicted]
    labels_there, predicted_there = labels[comparable], predicted[comparable]
    found: dict[str, Any] = {
        'coarse_accuracy': float(tree.same_parent(labels_there, predicted_there).sum() / len(labels)),
        'worst_severity': tree.height,
    }
    wrong = labels_there != predicted_there
    if wrong.any():
        severity = tree.severity(labels_there[wrong], predicted_there[wrong])
        heights, numbers = np.unique(severity, return_counts=True)
        found['mistake_severity'] = float(severity.mean())
        found['severities'] = {str(height): int(number) for height, number in zip(heights, numbers, strict=True)}
    return found
