"""Clusters of unknown photos: against SciPy's average linkage, loops over pairs, and chance."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as scipy_linkage
from scipy.spatial.distance import pdist

from lib.inference.neighbors import unit_length
from lib.posthoc.clusters import choose_threshold, cluster_unknown, linkage, pair_scores, purity


def draw(random, num_classes, each, noise, width=24):
    """Return features (num_classes * each, width) of classes around random points, behind a ReLU, and labels."""
    points = random.standard_normal((num_classes, width)) + 0.5
    labels = np.repeat(np.arange(num_classes), each)
    return np.maximum(0, points[labels] + noise * random.standard_normal((len(labels), width))).astype(
        np.float32
    ), labels


def partition(clusters):
    return {frozenset(np.flatnonzero(clusters == number).tolist()) for number in np.unique(clusters).tolist()}


@pytest.mark.parametrize('seed', range(4))
def test_clusters_are_those_of_scipy(seed):
    random = np.random.default_rng(seed)
    vectors = unit_length(draw(random, 8, 12, 0.8)[0].astype(np.float64) - 0.4)
    tree = scipy_linkage(pdist(vectors, 'cosine'), 'average')
    thresholds = [0.9, 0.7, 0.5, 0.3, 0.1]
    for threshold, clusters in zip(thresholds, linkage(vectors, thresholds), strict=True):
        assert partition(clusters) == partition(fcluster(tree, 1 - threshold, 'distance'))
        _, first = np.unique(clusters, return_index=True)
        assert (np.diff(first) > 0).all()


def test_copies_of_photos_are_one_cluster():
    """Ties of all kinds: many vectors have several nearest ones."""
    vectors = np.repeat(np.eye(4), [3, 1, 5, 2], axis=0)
    clusters = next(linkage(vectors, [0.99]))
    assert clusters.tolist() == [0] * 3 + [1] + [2] * 5 + [3] * 2
    assert next(linkage(vectors, [-1.0])).tolist() == [0] * 11
    assert next(linkage(vectors[:1], [0.5])).tolist() == [0]
    assert next(linkage(vectors[:0], [0.5])).tolist() == []


def test_pairs_and_purity_are_those_of_loops():
    random = np.random.default_rng(3)
    clusters, labels = random.integers(-1, 5, 60), random.integers(0, 6, 60)
    together = alike = both = 0
    for first in range(60):
        for second in range(first):
            is_together = clusters[first] == clusters[second] >= 0
            together += is_together
            alike += labels[first] == labels[second]
            both += is_together and labels[first] == labels[second]
    assert pair_scores(clusters, labels) == (both / together, both / alike)
    right = sum(max(np.bincount(labels[clusters == number])) for number in range(5))
    assert purity(clusters, labels) == right / (clusters >= 0).sum()
    assert np.isnan(purity(np.full(3, -1), labels[:3]))


@pytest.mark.parametrize('seed', range(3))
def test_new_classes_are_found(seed):
    """The threshold of known classes separates others; the clusters are far purer than those of chance."""
    random = np.random.default_rng(seed)
    known, known_labels = draw(random, 10, 8, 0.6)
    features, labels = draw(random, 6, 10, 0.6)
    mixed = random.permutation(len(labels))
    found = cluster_unknown(features[mixed], known, known_labels)
    clusters = found.numbers
    assert 0 < found.threshold < 1
    assert (np.diff(found.sizes) <= 0).all()
    assert found.sizes.min() > 1
    assert sorted(found.order.tolist()) == list(range(len(labels)))
    for number, size in enumerate(found.sizes.tolist()):
        rows = found.rows_of(number)
        assert len(rows) == size
        assert (clusters[rows] == number).all()
    assert purity(clusters, labels[mixed]) > 0.9
    assert (clusters >= 0).mean() > 0.7
    chance = np.mean([purity(random.permutation(clusters), labels) for _ in range(20)])
    assert chance < 0.5


def test_known_classes_of_one_image_each():
    random = np.random.default_rng(0)
    known, labels = draw(random, 9, 1, 0.5)
    assert choose_threshold(unit_length(known.astype(np.float64)), labels) == 0.5
