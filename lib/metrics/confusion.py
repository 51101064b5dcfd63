"""Confusions: the most frequent pairs of classes, without a num_classes x num_classes matrix, and mistake severity.

The severity of a mistake is a height in the product tree: two kinds of apples are closer than an apple and a drink.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ConfusedPair:
    """Images of class `label` that were predicted as class `predicted`."""

    label: int
    predicted: int
    rows: np.ndarray  # (num_mistakes,) int64, ascending
    num_images: int  # of class `label`
    num_reverse: int  # images of `predicted` that were predicted as `label`

    @property
    def fraction(self) -> float:
        """Fraction of the class's images that were predicted as the other one."""
        return len(self.rows) / self.num_images


def most_confused(labels: np.ndarray, predicted: np.ndarray, limit: int = 10) -> list[ConfusedPair]:
    """Return the `limit` most frequent (label, predicted) pairs of unequal classes, most frequent first.

    `labels` and `predicted` are integers (num_images,); negative predictions (unreadable images) are left
    out. Ties go to the larger fraction of the class, then to the smaller class numbers.
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
    fractions = counts / class_images[pairs // base]
    order = np.lexsort((pairs, -fractions, -counts))[:limit]

    def count_of(label: int, other: int) -> int:
        key = label * base + other
        index = int(np.searchsorted(pairs, key))
        return int(counts[index]) if index < len(pairs) and pairs[index] == key else 0

    confused = []
    for index in order:
        label, other = divmod(int(pairs[index]), base)
        rows = wrong[keys == pairs[index]]
        confused.append(ConfusedPair(label, other, rows, int(class_images[label]), count_of(other, label)))
    return confused


class ProductTree:
    """The tree of the classes' ancestors: the classes are its leaves, nodes are paths from the root.

    Equal names under different parents are different nodes. A class without known ancestors (an empty list) is not part
    of the tree.

    Args:
        parents: ancestors of each class from the root down, as in classes.json.
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
        # A node's height is the longest path down to a class; that of a class is 0. The last entry is the root.
        heights = np.zeros(len(numbers) + 1, np.int64)
        for level in range(deepest):
            reaches = depths > level
            np.maximum.at(heights, nodes[reaches, level], depths[reaches] - level)
        heights[-1] = deepest + 1
        self._nodes, self._depths, self._heights = nodes, depths, heights

    @property
    def has_parents(self) -> np.ndarray:
        """Return whether each class has known ancestors, (num_classes,) bool."""
        return self._depths > 0

    @property
    def height(self) -> int:
        """The severity of the worst mistake: the height of the lowest common ancestor of all classes."""
        in_tree = self._nodes[self.has_parents]
        if not len(in_tree):
            return 0
        common = (in_tree == in_tree[0]).all(axis=0) & (in_tree[0] >= 0)
        return int(self._heights[in_tree[0][int(common.sum()) - 1] if common.any() else -1])

    def severity(self, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Return the height of the lowest common ancestor of two classes each, (n,) int64; 0 for the same class.

        Args:
            labels, predicted: (n,) int64 classes with known ancestors.
        """
        one, other = self._nodes[labels], self._nodes[predicted]
        # Nodes are paths, so chains that differ at one level differ at all levels below.
        common = ((one == other) & (one >= 0)).sum(axis=1)
        if one.shape[1]:
            lowest = np.where(common > 0, one[np.arange(len(one)), np.maximum(common - 1, 0)], -1)
        else:
            lowest = np.full(len(one), -1)
        return np.where(labels == predicted, 0, self._heights[lowest])

    def same_parent(self, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Return whether two classes each have the same parent, (n,) bool; both have known ancestors."""
        return self._parent(labels) == self._parent(predicted)

    def _parent(self, classes: np.ndarray) -> np.ndarray:
        return self._nodes[classes, self._depths[classes] - 1]


def tree_metrics(labels: np.ndarray, predicted: np.ndarray, parents: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return coarse accuracy and mean mistake severity (Bertinetto et al., Making Better Mistakes, CVPR 2020).

    Args:
        labels: (n,) int64, none below 0.
        predicted: (n,) int64, -1 where the image could not be decoded: coarsely wrong too, but without severity.
        parents: (num_classes) ancestors of each class, root first; [] where unknown. Images of such classes do not
            count, and predictions of them have no severity.

    Returns:
        coarse_accuracy: fraction of images whose predicted class has the label's parent.
        mistake_severity: mean height of the lowest common ancestor of label and prediction over mistakes.
        worst_severity: height of the lowest common ancestor of all classes, the largest possible severity.
        severities: number of mistakes of each height, {height: number}.
        A metric without images, or without mistakes, is absent.
    """
    tree = ProductTree(parents)
    in_tree = tree.has_parents[labels]
    labels, predicted = labels[in_tree], predicted[in_tree]
    if not len(labels):
        return {}
    comparable = (predicted >= 0) & tree.has_parents[predicted]
    known_labels, known_predicted = labels[comparable], predicted[comparable]
    metrics: dict[str, Any] = {
        'coarse_accuracy': float(tree.same_parent(known_labels, known_predicted).sum() / len(labels)),
        'worst_severity': tree.height,
    }
    wrong = known_labels != known_predicted
    if wrong.any():
        severity = tree.severity(known_labels[wrong], known_predicted[wrong])
        heights, counts = np.unique(severity, return_counts=True)
        metrics['mistake_severity'] = float(severity.mean())
        metrics['severities'] = {str(height): int(count) for height, count in zip(heights, counts, strict=True)}
    return metrics
