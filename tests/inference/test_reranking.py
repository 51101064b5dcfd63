"""Query expansion and k-reciprocal re-ranking against slow versions with sets, and what both do to results."""

import numpy as np
import pytest

from lib.inference import reranking
from lib.inference.neighbors import nearest
from lib.inference.reranking import METHODS, ReciprocalRanking, expanded_queries, reranked_search
from lib.inference.retrieval import retrieval_metrics
from tests.oracles.reranking import ReciprocalGallery, expanded

METHODS_AND_SAME = [(method, same) for method in METHODS for same in (False, True)]


def draw(seed, num_queries=23, num_gallery=120, num_classes=8, width=7, noise=1.0):
    """Return queries, their classes, gallery rows and theirs; classes are Gaussian, of different sizes."""
    random = np.random.default_rng(seed)
    means = 2 * random.standard_normal((num_classes, width))
    labels = [
        random.choice(num_classes, size=n, p=np.arange(1, num_classes + 1) / sum(range(num_classes + 1)))
        for n in (num_queries, num_gallery)
    ]
    queries, gallery = (
        (means[some] + noise * random.standard_normal((len(some), width))).astype(np.float32) for some in labels
    )
    return queries, labels[0], gallery, labels[1]


@pytest.fixture(params=[4000, 1 << 22], ids=['small blocks', 'one block'])
def blocks(request, monkeypatch):
    monkeypatch.setattr(reranking, '_BLOCK_VALUES', request.param)


@pytest.mark.parametrize(('number', 'power'), [(1, 1.0), (10, 3.0), (120, 0.0)])
def test_expansion_is_a_weighted_mean(number, power, blocks):
    queries, _, gallery, _ = draw(number)
    found = nearest(queries, gallery, number)
    larger = expanded_queries(queries, gallery, found, number=number, power=power)
    expected = [expanded(query, gallery, number, power) for query in queries]
    if power:
        np.testing.assert_allclose(larger, expected, atol=1e-5)
    assert larger.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(larger, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(('k1', 'k2'), [(20, 6), (5, 3), (1, 1), (7, 1)])
@pytest.mark.parametrize('seed', range(2))
def test_reciprocal_ranking_against_sets(seed, k1, k2, blocks):
    queries, _, gallery, _ = draw(seed)
    ranking = ReciprocalRanking(gallery, nearest(gallery, gallery, k1, exclude_self=True), k1=k1, k2=k2, weight=0.3)
    found = ranking(queries, nearest(queries, gallery, len(gallery)))
    oracle = ReciprocalGallery(gallery, k1, k2)
    for row, query in enumerate(queries):
        _, distances = oracle.ranked(query, 0.3)
        assert sorted(found.rows[row].tolist()) == list(range(len(gallery)))
        np.testing.assert_allclose(distances[found.rows[row]], np.sort(distances), atol=1e-5)


def test_the_original_distance_alone_changes_nothing():
    queries, _, gallery, _ = draw(3)
    found = nearest(queries, gallery, 30)
    again = ReciprocalRanking(gallery, nearest(gallery, gallery, 20, exclude_self=True), weight=1.0)(queries, found)
    assert (again.rows == found.rows).all()
    assert (again.values == found.values).all()


@pytest.mark.parametrize(('method', 'same'), METHODS_AND_SAME)
def test_scattered_classes_are_found_better(method, same):
    before, after = [], []
    for seed in range(2):
        queries, labels, gallery, gallery_labels = draw(seed, 60, 250, 8, 16, 1.6)
        if same:
            queries, labels = gallery, gallery_labels
        search = reranked_search(method, gallery)
        arguments = (queries, labels, gallery, gallery_labels)
        before.append(retrieval_metrics(*arguments, exclude_self=same).images['map@r'])
        after.append(retrieval_metrics(*arguments, exclude_self=same, search=search).images['map@r'])
    assert np.mean(after) > np.mean(before) + 0.02


@pytest.mark.parametrize(('method', 'same'), METHODS_AND_SAME)
def test_a_search_of_some_rows_is_that_of_all(method, same):
    queries, _, gallery, _ = draw(5)
    queries = gallery if same else queries
    search = reranked_search(method, gallery)
    [(_, whole)] = search(queries, gallery, 9, exclude_self=same)
    rows = np.array([11, 2, 19])
    [(some, found)] = search(queries, gallery, 9, exclude_self=same, rows=rows)
    assert some.tolist() == rows.tolist()
    assert (found.rows == whole.rows[rows]).all()
    assert found.rows.shape == (3, 9)
    if same:
        assert not (whole.rows == np.arange(len(gallery))[:, None]).any()


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('num_gallery', [1, 2, 5])
def test_small_galleries(method, num_gallery):
    queries, _, gallery, _ = draw(6, num_gallery=num_gallery)
    queries[0], gallery[0] = 0, 0  # images without features
    found = nearest(queries, gallery, 3, search=reranked_search(method, gallery))
    assert found.rows.shape == (len(queries), min(3, num_gallery))
    assert np.isfinite(found.values).all()


def test_duplicates_are_neighbors_of_each_other():
    """More equal photos than neighbors: each is still in its own neighborhood."""
    gallery = np.repeat(np.eye(3, dtype=np.float32), 40, axis=0) * np.float32(1 / 3)
    found = nearest(gallery[::40], gallery, 40, search=reranked_search('reciprocal', gallery))
    assert (found.rows // 40 == np.arange(3)[:, None]).all()


def test_unknown_method():
    with pytest.raises(ValueError, match='must be one of query_expansion, reciprocal'):
        reranked_search('magic', np.eye(3, dtype=np.float32))
