"""Nearest neighbors, retrieval metrics and votes against slow loops and scikit-learn."""

import math
import statistics
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch

from lib.distributed.process_group import ProcessGroup
from lib.inference import neighbors
from lib.inference.neighbors import METRICS, Neighbors, nearest, neighbor_blocks, vote
from lib.inference.retrieval import retrieval_metrics
from lib.runtime.device import one_thread
from tests.oracles.neighbors import nearest_rows, retrieval_of
from tests.ranks import run_ranks


def draw(seed, num_queries=37, num_gallery=83, width=6):
    random = np.random.default_rng(seed)
    return random.standard_normal((num_queries, width), np.float32), random.standard_normal(
        (num_gallery, width), np.float32
    )


@pytest.fixture(params=[5, 13, 4096], ids=['tiny blocks', 'small blocks', 'one block'])
def blocks(request, monkeypatch):
    monkeypatch.setattr(neighbors, '_GALLERY_BLOCK', request.param)


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('k', [1, 7, 83, 100])
def test_against_scikit_learn(metric, k, blocks):
    from sklearn.neighbors import NearestNeighbors  # here, since ranks import this module, too

    queries, gallery = draw(k)
    found = nearest(queries, gallery, k, metric=metric)
    oracle = NearestNeighbors(n_neighbors=min(k, 83), metric=metric, algorithm='brute').fit(gallery)
    values, rows = oracle.kneighbors(queries)
    assert (found.rows == rows).all()
    np.testing.assert_allclose(found.values, 1 - values if metric == 'cosine' else values, atol=2e-6)
    assert (found.rows.dtype, found.values.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('same', [False, True])
@pytest.mark.parametrize('seed', range(4))
def test_ties_go_to_the_smaller_row(metric, same, seed, blocks):
    """Vectors of a few whole numbers: many are at the same distance, and sums of squares are exact."""
    random = np.random.default_rng(seed)
    axes = np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3)), 2 * np.eye(3)]).astype(np.float32)
    gallery = axes[random.integers(len(axes), size=41)]
    queries = gallery if same else axes[random.integers(len(axes), size=17)]
    found = nearest(queries, gallery, 11, metric=metric, exclude_self=same)
    for row, query in enumerate(queries.tolist()):
        rows, values = nearest_rows(query, gallery, 11, metric, row if same else None)
        assert found.rows[row].tolist() == rows
        assert found.values[row].tolist() == pytest.approx(values, abs=1e-6)


def _on_rank(rank, count):
    found = []
    for metric in METRICS:
        for same in (False, True):
            queries, gallery = draw(3)
            queries, search = gallery if same else queries, partial(neighbor_blocks, group=ProcessGroup(rank, count))
            found += [torch.from_numpy(array) for array in _found(queries, gallery, metric, same, search)]
            found.append(_metrics(queries, gallery, metric, same, search))
    return found


def _found(queries, gallery, metric, same, search):
    return nearest(queries, gallery, 5, metric=metric, exclude_self=same, search=partial(search, megabytes=1))


def _metrics(queries, gallery, metric, same, search):
    labels, search = np.arange(len(gallery)) % 7, partial(search, megabytes=1)
    query_labels = labels[: len(queries)]
    return str(
        retrieval_metrics(queries, query_labels, gallery, labels, metric=metric, exclude_self=same, search=search)
    )


@pytest.mark.process
def test_ranks_find_the_same_bits(tmp_path):
    """Each block of queries is compared by one rank, as it is by one process; there are more blocks than ranks."""
    assert len(list(neighbor_blocks(*draw(3), 5, megabytes=1))) > 3
    with one_thread():  # as on a rank: with others, last digits differ on some processors
        alone = _on_rank(0, 1)
    for found in run_ranks(_on_rank, 3, tmp_path):
        for one, other in zip(found, alone, strict=True):
            assert one == other if isinstance(one, str) else torch.equal(one, other)


def test_near_distances_are_exact_far_from_the_origin():
    queries, gallery = draw(0)
    found = nearest(queries + 1000, gallery + 1000, 5, metric='euclidean')
    for row, query in enumerate((queries + 1000).tolist()):
        rows, values = nearest_rows(query, gallery + 1000, 5, 'euclidean')
        assert found.rows[row].tolist() == rows
        assert found.values[row].tolist() == pytest.approx(values, rel=1e-5)


def test_chosen_queries_in_their_order_and_blocks_of_them(blocks):
    _, gallery = draw(1, 0, 500, 30)
    whole = nearest(gallery, gallery, 4, exclude_self=True)
    rows = np.random.default_rng(1).permutation(500)[:123]
    found = list(neighbor_blocks(gallery, gallery, 4, exclude_self=True, rows=rows, megabytes=1))
    assert len(found) > 1 or neighbors._GALLERY_BLOCK < 4096
    assert np.concatenate([some for some, _ in found]).tolist() == rows.tolist()
    assert (np.concatenate([part.rows for _, part in found]) == whole.rows[rows]).all()
    assert not (whole.rows == np.arange(500)[:, None]).any()


def test_memory_mapped_features(tmp_path):
    queries, gallery = draw(2)
    np.save(tmp_path / 'gallery.npy', gallery)
    mapped = np.load(tmp_path / 'gallery.npy', mmap_mode='r')
    for one, two in zip(nearest(queries, mapped, 5), nearest(queries, gallery, 5), strict=True):
        assert (one == two).all()


def test_faults():
    queries, gallery = draw(3)
    with pytest.raises(ValueError, match='cosine, euclidean'):
        nearest(queries, gallery, 1, metric='manhattan')
    with pytest.raises(ValueError, match='neighbors of queries'):
        nearest(queries, gallery[:, :3], 1)
    with pytest.raises(ValueError, match='neighbors of queries'):
        nearest(gallery[:1], gallery[:1], 1, exclude_self=True)
    assert nearest(queries[:0], gallery, 3).rows.shape == (0, 3)


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('same', [False, True])
@pytest.mark.parametrize('seed', range(3))
def test_retrieval_against_loops(metric, same, seed, blocks):
    """Classes from none to most of the gallery; some queries and gallery images of an unknown class."""
    random = np.random.default_rng(seed)
    gallery_labels = np.sort(random.choice([-1, 0, 1, 2, 4, 5], size=83, p=[0.05, 0.02, 0.1, 0.03, 0.6, 0.2]))
    random.shuffle(gallery_labels)
    centers = random.standard_normal((7, 6))
    gallery = (centers[gallery_labels] + random.standard_normal((83, 6))).astype(np.float32)
    labels = gallery_labels if same else random.integers(-1, 7, 37)
    queries = gallery if same else (centers[labels] + random.standard_normal((37, 6))).astype(np.float32)
    found = retrieval_metrics(
        queries, labels, gallery, gallery_labels, recall_at=(1, 3, 10), metric=metric, exclude_self=same
    )
    by_class = {}
    for row, query in enumerate(queries.tolist()):
        own = row if same else None
        metrics = retrieval_of(query, labels[row], gallery, gallery_labels.tolist(), (1, 3, 10), metric, own)
        if metrics is not None:
            by_class.setdefault(int(labels[row]), []).append(metrics)
    everything = [metrics for part in by_class.values() for metrics in part]
    assert (found.num_queries, found.left_out) == (len(everything), len(queries) - len(everything))
    for name in ('recall@1', 'recall@3', 'recall@10', 'r_precision', 'map@r'):
        assert found.images[name] == pytest.approx(statistics.mean(metrics[name] for metrics in everything))
        means = [statistics.mean(metrics[name] for metrics in part) for part in by_class.values()]
        assert found.classes[name] == pytest.approx(statistics.mean(means))


def test_the_example_of_the_paper():
    """Musgrave et al., section 3.2: a class of ten images, with different hits among the ten nearest."""

    def of(hits):
        angles = np.linspace(0.01, 1.0, 20)
        gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        labels = np.array([*(0 if hit else 1 for hit in hits), *([0] * (10 - sum(hits))), *([1] * sum(hits))])
        query = np.array([[1.0, 0.0]], np.float32)
        return retrieval_metrics(query, np.array([0]), gallery, labels).images

    only_first, first_and_tenth = of([1] + [0] * 9), of([1] + [0] * 8 + [1])
    assert (only_first['r_precision'], only_first['map@r']) == pytest.approx((0.1, 0.1))
    assert (first_and_tenth['r_precision'], first_and_tenth['map@r']) == pytest.approx((0.2, 0.12))
    assert of([1, 1] + [0] * 8)['map@r'] == pytest.approx(0.2)
    assert of([1] * 10)['map@r'] == 1


def test_nothing_to_find():
    queries, gallery = draw(4)
    found = retrieval_metrics(queries, np.full(37, 3), gallery, np.zeros(83, np.int64))
    assert (found.images, found.classes, found.num_queries, found.left_out) == ({}, {}, 0, 37)


@pytest.mark.long
def test_a_class_of_thousands_needs_no_matrix():
    """3,000 queries, each with 9,000 of its class: the neighbors of all at once would be 320 MB."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [9000, 50])
    gallery = random.standard_normal((len(labels), 4)).astype(np.float32)
    gallery[labels == 1, 0] += 30
    tracemalloc.start()  # NumPy's memory; torch's blocks are bounded by `megabytes`
    found = retrieval_metrics(gallery[-3000:], labels[-3000:], gallery, labels, metric='euclidean')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6
    assert (found.num_queries, found.classes['map@r']) == (3000, 1.0)


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('k', [1, 2, 9])
def test_votes_against_scikit_learn(metric, k):
    from sklearn.neighbors import KNeighborsClassifier

    queries, gallery = draw(k, 60)
    labels = np.random.default_rng(k).integers(5, size=83)
    labels[labels == 3] = 7  # class 3 gets no votes
    oracle = KNeighborsClassifier(k, metric=metric, algorithm='brute').fit(gallery, labels)
    found = vote(nearest(queries, gallery, k, metric=metric), labels, metric=metric)
    assert (found.predicted == oracle.predict(queries)).all()
    fractions = np.zeros((60, 8))
    for row in range(60):
        counted = found.classes[row] >= 0
        fractions[row, found.classes[row][counted]] = found.fractions[row][counted]
    np.testing.assert_allclose(fractions[:, oracle.classes_], oracle.predict_proba(queries), atol=1e-6)


@pytest.mark.parametrize('metric', METRICS)
def test_similar_neighbors_have_more_votes(metric):
    queries, gallery = draw(5)
    labels = np.random.default_rng(5).integers(4, size=83)
    near = nearest(queries, gallery, 9, metric=metric)
    found = vote(near, labels, weights='similarity', temperature=0.1, metric=metric)
    for row in range(len(queries)):
        votes = {}
        for other, value in zip(near.rows[row], near.values[row].tolist(), strict=True):
            similarity = value if metric == 'cosine' else -value
            votes[int(labels[other])] = votes.get(int(labels[other]), 0.0) + math.exp(similarity / 0.1)
        ranked = sorted(votes, key=lambda label: -votes[label])
        assert found.classes[row].tolist() == ranked + [-1] * (9 - len(ranked))
        expected = [votes[label] / sum(votes.values()) for label in ranked] + [0.0] * (9 - len(ranked))
        assert found.fractions[row].tolist() == pytest.approx(expected, rel=1e-5)


def test_votes_of_far_neighbors_do_not_vanish():
    found = vote(Neighbors(np.array([[0, 1]]), np.array([[900.0, 950.0]], np.float32)), np.array([2, 1]),
                 weights='similarity', temperature=1.0, metric='euclidean')  # fmt: skip
    assert found.classes.tolist() == [[2, 1]]
    assert found.fractions[0].tolist() == pytest.approx([1.0, 0.0])
    with pytest.raises(ValueError, match='majority or similarity'):
        vote(Neighbors(np.array([[0]]), np.array([[1.0]], np.float32)), np.array([2]), weights='distance')
