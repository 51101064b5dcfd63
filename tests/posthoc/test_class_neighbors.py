"""Neighbors among members of candidate classes, and their votes: against loops over images."""

import random

import numpy as np
import pytest
import torch

from lib.posthoc import class_neighbors
from lib.posthoc.class_neighbors import NUM_NEIGHBORS, NeighborSearch, log_votes, votes_for_classes
from lib.posthoc.judged_images import JudgedImages


@pytest.fixture
def seed() -> int:
    number = random.randrange(10**6)
    print(f'seed {number}')
    return number


def drawn(seed: int, num_images: int = 200, num_classes: int = 12, width: int = 6) -> JudgedImages:
    rng = np.random.default_rng(seed)
    labels = np.r_[0, rng.integers(1, num_classes, num_images - 1)]
    values = rng.normal(size=(num_images + 10, width)).astype(np.float32)
    rows = np.sort(rng.choice(len(values), num_images, replace=False))
    return JudgedImages(values, rows, labels, num_classes, np.ones(num_images, np.float32))


def unit_features(images: JudgedImages) -> np.ndarray:
    values = images.values[images.rows]
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def candidates_of(rng: np.random.Generator, images: JudgedImages, k: int) -> np.ndarray:
    return np.stack([rng.permutation(images.num_classes)[:k] for _ in range(len(images))]).astype(np.int32)


@pytest.mark.parametrize('k', [3, 10])
def test_neighbors_are_the_nearest_members_of_candidates_and_label(seed, k, monkeypatch):
    monkeypatch.setattr('lib.posthoc.judged_images._MAX_VALUES', 20_000)
    monkeypatch.setattr(class_neighbors, 'MAX_MEMBERS', 1000)
    images, rng = drawn(seed), np.random.default_rng(seed)
    features, classes = unit_features(images), candidates_of(rng, images, k)
    some = np.sort(rng.choice(len(images), 90, replace=False))
    search = NeighborSearch(images, 0.5)
    found, similarities = search.nearest(torch.from_numpy(features[some]), some, classes[some])
    for row, image in enumerate(some):
        searched = {*classes[image].tolist(), int(images.labels[image])}
        others = [other for other in range(len(images)) if images.labels[other] in searched and other != image]
        cosines = features[others] @ features[image]
        order = np.argsort(-cosines)[:NUM_NEIGHBORS]
        np.testing.assert_allclose(similarities[row, : len(order)], cosines[order] / 0.5, atol=1e-5)
        assert set(found[row, : len(order)].tolist()) == {others[number] for number in order}
        assert (found[row, len(order) :] == -1).all()


def test_at_most_a_few_members_of_a_class_are_searched(seed, monkeypatch):
    monkeypatch.setattr(class_neighbors, 'MAX_MEMBERS', 4)
    images = drawn(seed)
    classes = candidates_of(np.random.default_rng(seed), images, 12)
    features, every = torch.from_numpy(unit_features(images)), np.arange(len(images))
    found, _ = NeighborSearch(images, 1.0).nearest(features, every, classes)
    for label in range(images.num_classes):
        members = np.unique(found[found >= 0][images.labels[found[found >= 0]] == label])
        assert len(members) <= 4
    again, _ = NeighborSearch(images, 1.0).nearest(features, every, classes)
    assert (found == again).all()


@pytest.mark.parametrize('members', [5, 1000])
def test_votes(seed, members, monkeypatch):
    monkeypatch.setattr(class_neighbors, 'MAX_MEMBERS', members)
    monkeypatch.setattr(class_neighbors, '_ROWS', 13)
    rng = np.random.default_rng(seed)
    labels, trust = rng.integers(0, 5, 60), rng.uniform(0.01, 1, 60)
    neighbors = np.stack([rng.permutation(60)[:6] for _ in range(60)]).astype(np.int32)
    neighbors[rng.random(neighbors.shape) < 0.2] = -1
    neighbors[7] = -1
    similarities = np.where(neighbors >= 0, rng.uniform(0.5, 1, neighbors.shape), -np.inf).astype(np.float32)
    classes = np.stack([rng.permutation(5)[:3] for _ in range(60)]).astype(np.int32)
    found = votes_for_classes(neighbors, similarities, labels, classes, trust)
    for image in range(60):
        votes = np.zeros(5)
        for other, similarity in zip(neighbors[image], similarities[image], strict=True):
            if other < 0:
                continue
            same = np.flatnonzero(labels == labels[other])
            searched = min(members, len(same)) * trust[same].mean()
            searched *= 1 - (labels[other] == labels[image]) / len(same)
            votes[labels[other]] += np.exp(similarity / 0.07) * trust[other] / max(searched, 1)
        votes /= max(votes.sum(), 1e-30)
        np.testing.assert_allclose(found[image], votes[[*classes[image], labels[image]]], atol=2e-3)


def test_the_size_of_a_class_is_no_advantage(seed, monkeypatch):
    """Two classes in the same place, one of them five times as large: half of the votes are for each."""
    monkeypatch.setattr(class_neighbors, 'MAX_MEMBERS', 1000)
    rng = np.random.default_rng(seed)
    labels = np.r_[np.zeros(100, np.int64), np.ones(20, np.int64)]
    neighbors = np.stack([rng.permutation(120)[:10] for _ in range(120)]).astype(np.int32)
    similarities = np.ones(neighbors.shape, np.float32)
    found = votes_for_classes(neighbors, similarities, labels, np.zeros((120, 1), np.int32), np.ones(120))
    assert found[:, 0].astype(float).mean() == pytest.approx(0.5, abs=0.12)


def test_logarithms_are_finite():
    values = log_votes(np.array([0, 0.5, 1], np.float16))
    assert np.isfinite(values).all()
    assert (np.diff(values) > 0).all()
