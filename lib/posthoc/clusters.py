"""Clusters of photos of unknown products: proposals for new classes.

Average linkage (UPGMA: Sokal & Michener 1958) of cosine similarities: two clusters merge while the mean similarity of
their pairs is at least a threshold. Clusters that are each other's nearest merge at the same time, which gives the same
clusters as merging the nearest pair of all (de Rham 1980), in few passes: memory O(images), time O(images^2) each. The
threshold is the one that separates the known classes best.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lib.dataset.index import ranks_in_classes
from lib.inference.neighbors import unit_length

MAX_IMAGES = 20_000
_MAX_OF_KNOWN, _MAX_PER_CLASS = 5000, 20
_THRESHOLDS = np.linspace(1, 0, 51)
_NEARLY_BEST = 0.99
_BETA = 0.5  # precision of pairs counts twice as much as recall: a photo too many costs a reviewer more than a name
_BLOCK = 1024


@dataclass(frozen=True)
class Clusters:
    """Clusters of n photos.

    Attributes:
        numbers: (n,) int64 cluster of each photo: 0 is the largest, of equal ones that with the first photo. -1: no
            other photo resembles it.
        order: (n,) rows by cluster, and in each the most typical photo first; photos in no cluster are the last.
        threshold: mean similarity above which clusters were merged.
    """

    numbers: np.ndarray
    order: np.ndarray
    threshold: float

    @property
    def sizes(self) -> np.ndarray:
        """Photos of each cluster, descending."""
        return np.bincount(self.numbers[self.numbers >= 0])

    def rows_of(self, number: int) -> np.ndarray:
        """Return the rows of a cluster, the most typical first."""
        sizes = self.sizes
        return self.order[sizes[:number].sum() :][: sizes[number]]


def cluster_unknown(features: np.ndarray, known: np.ndarray, known_labels: np.ndarray) -> Clusters:
    """Cluster photos that show none of the known classes.

    Args:
        features: (n, d) of the photos, at most MAX_IMAGES.
        known: (m, d) features of images of known classes that the model was not trained on.
        known_labels: (m,) int.
    """
    # Features behind a ReLU all point in one direction, so uncentered any two photos are similar.
    center = unit_length(known.astype(np.float64)).mean(axis=0)
    rows, vectors = _sample(known_labels), _centered(features, center)
    threshold = choose_threshold(_centered(known[rows], center), known_labels[rows])
    found = next(linkage(vectors, [threshold]))
    sizes = np.bincount(found, minlength=len(features))
    by_size = np.argsort(-sizes, kind='stable')  # clusters are numbered in the order of their first photos
    number = np.empty(len(by_size), np.int64)
    number[by_size] = np.arange(len(by_size))
    means = np.zeros((len(features), vectors.shape[1]))
    np.add.at(means, found, vectors)
    similarity = np.einsum('nd,nd->n', vectors, unit_length(means)[found])
    numbers = np.where(sizes[found] > 1, number[found], -1)
    return Clusters(numbers, np.lexsort((-similarity, np.where(numbers < 0, len(numbers), numbers))), threshold)


def linkage(vectors: np.ndarray, thresholds: Sequence[float]) -> Iterator[np.ndarray]:
    """Yield the clusters of unit vectors (n, d) by average linkage at each of descending thresholds.

    Yields:
        (n,) int64 numbers, ascending with the first vector of a cluster.
    """
    cluster = np.arange(len(vectors))
    sums, sizes = vectors.astype(np.float64), np.ones(len(vectors), np.int64)
    nearest: np.ndarray | None = None
    for threshold in thresholds:
        while len(sizes) > 1:
            if nearest is None:
                nearest, similarity = _nearest(sums / sizes[:, None])
            first = np.arange(len(sizes))
            merges = (nearest[nearest] == first) & (first < nearest) & (similarity >= threshold)
            if not merges.any():
                best = int(similarity.argmax())
                if similarity[best] < threshold:
                    break
                merges[best] = True  # rounding has hidden that these two are each other's nearest
            target = first.copy()
            target[nearest[merges]] = first[merges]
            _, target = np.unique(np.minimum(target, target[target]), return_inverse=True)
            merged = np.zeros((target.max() + 1, sums.shape[1])), np.zeros(target.max() + 1, np.int64)
            np.add.at(merged[0], target, sums)
            np.add.at(merged[1], target, sizes)
            (sums, sizes), nearest = merged, None
            cluster = target[cluster]
        yield cluster


def choose_threshold(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Return the threshold at which the clusters of unit vectors fit their labels best (F0.5 of pairs).

    Features that were trained on these classes separate them at many thresholds. Others are more alike than these,
    so it is the upper quartile of those thresholds.
    """
    if len(np.unique(labels)) == len(labels):
        return 0.5  # no pair of one class: photos that are more alike than not
    scores = []
    for cluster in linkage(vectors, _THRESHOLDS.tolist()):
        precision, recall = pair_scores(cluster, labels)
        weighted = _BETA**2 * precision + recall
        scores.append((1 + _BETA**2) * precision * recall / weighted if weighted else 0.0)
    return float(np.quantile(_THRESHOLDS[np.array(scores) >= _NEARLY_BEST * max(scores)], 0.75))


def pair_scores(clusters: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return precision and recall of pairs: of pairs in one cluster, those of one label, and the reverse.

    Args:
        clusters: (n,) int; -1: alone.
        labels: (n,) int.
    """
    joint, of_cluster, of_label = _counts(clusters, labels)
    same, together, alike = ((counts * (counts - 1)).sum() for counts in (joint, of_cluster, of_label))
    return float(same / together) if together else 1.0, float(same / alike) if alike else 1.0


def purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of clustered images whose label is the most frequent one of their cluster; nan without any.

    Args:
        clusters: (n,) int; -1: in no cluster.
        labels: (n,) int.
    """
    is_in = clusters >= 0
    if not is_in.any():
        return float('nan')
    pairs, counts = np.unique(np.stack([clusters[is_in], labels[is_in]]), axis=1, return_counts=True)
    best = np.zeros(pairs[0].max() + 1, np.int64)
    np.maximum.at(best, pairs[0], counts)
    return float(best.sum() / is_in.sum())


def _counts(clusters: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sizes of intersections, of clusters and of labels; an image that is alone is a cluster."""
    alone = clusters.max(initial=-1) + 1 + np.arange(len(clusters))
    clusters = np.where(clusters >= 0, clusters, alone)
    joint = np.unique(np.stack([clusters, labels]), axis=1, return_counts=True)[1]
    return joint, np.unique(clusters, return_counts=True)[1], np.unique(labels, return_counts=True)[1]


def _sample(labels: np.ndarray) -> np.ndarray:
    """Return the rows, ascending, of at most _MAX_PER_CLASS images per class and _MAX_OF_KNOWN in all."""
    rows = np.flatnonzero(ranks_in_classes(labels) < _MAX_PER_CLASS)
    if len(rows) <= _MAX_OF_KNOWN:
        return rows
    classes = np.unique(labels)
    step = -(-len(rows) // _MAX_OF_KNOWN)
    return rows[np.isin(labels[rows], classes[::step])]  # whole classes, so that pairs remain


def _centered(features: np.ndarray, center: np.ndarray) -> np.ndarray:
    return unit_length(unit_length(features.astype(np.float64)) - center)


def _nearest(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cluster with the largest mean similarity to each, of equal ones the first, and that similarity."""
    nearest, similarity = np.empty(len(means), np.int64), np.empty(len(means))
    for start in range(0, len(means), _BLOCK):
        part = slice(start, start + _BLOCK)
        scores = means[part] @ means.T
        rows = np.arange(len(scores))
        scores[rows, rows + start] = -np.inf
        nearest[part] = scores.argmax(axis=1)
        similarity[part] = scores[rows, nearest[part]]
    return nearest, similarity
