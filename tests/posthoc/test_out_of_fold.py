"""Out-of-fold candidates: against loops over images and classes, interrupted, and on several ranks."""

import random
from dataclasses import asdict

import numpy as np
import pytest
import torch

from lib.distributed.process_group import ProcessGroup
from lib.posthoc import out_of_fold
from lib.posthoc.crossfit import stratified_folds
from lib.posthoc.discriminant import FoldedDiscriminants
from lib.posthoc.judged_images import JudgedImages, LeaveOneOutMeans
from lib.posthoc.out_of_fold import choose_head, out_of_fold_candidates
from lib.runtime.column_store import ColumnStore
from tests.ranks import run_ranks

CPU = torch.device('cpu')
NEVER = -1e30


def drawn(seed: int, num_images: int = 300, num_classes: int = 9, width: int = 8) -> JudgedImages:
    """Return weighted images of classes around centers; the features of other rows are not judged. Class 0 is rare."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0], rng.integers(1, num_classes, num_images - 1)])
    centers = rng.normal(size=(num_classes, width))
    values = rng.normal(size=(num_images + 20, width)).astype(np.float32)
    rows = np.sort(rng.choice(len(values), num_images, replace=False))
    values[rows] = 1 + centers[labels] + 0.7 * rng.normal(size=(num_images, width))
    weights = rng.uniform(0.2, 1, num_images).astype(np.float32)
    return JudgedImages(values, rows, labels, num_classes, weights)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def similarities(images: JudgedImages) -> np.ndarray:
    """Return (n, num_classes) cosine similarities to class means without the image itself; -inf without others."""
    features = unit(images.values[images.rows].astype(np.float64))
    features = unit(features - features.mean(axis=0))
    found = np.full((len(images), images.num_classes), -np.inf)
    for image in range(len(images)):
        for label in range(images.num_classes):
            others = np.flatnonzero((images.labels == label) & (np.arange(len(images)) != image))
            if len(others):
                mean = sum(images.weights[other] * features[other] for other in others)
                found[image, label] = features[image] @ mean / np.linalg.norm(mean)
    return found


def check(found, images, logits, near, k):
    """Compare candidates with logits and similarities (n, num_classes) of all classes."""
    every = np.arange(len(images))
    best = np.argsort(-logits, axis=1)[:, :k]
    assert (found.classes == best).all()
    np.testing.assert_allclose(found.logits, np.take_along_axis(logits, best, 1), rtol=2e-4, atol=2e-4)
    own = logits[every, images.labels]
    np.testing.assert_allclose(found.own, np.maximum(own, NEVER), rtol=2e-4, atol=2e-4)
    for power, log_sum in ((1, found.log_sum), (2, found.log_sum_2)):
        np.testing.assert_allclose(log_sum, np.log(np.exp(power * logits).sum(axis=1)), rtol=2e-4, atol=2e-4)
    own_near = near[every, images.labels]
    np.testing.assert_allclose(found.own_similarity, np.where(np.isfinite(own_near), own_near, np.nan), atol=1e-4)
    of_best = np.take_along_axis(near, best, 1)
    known = np.isfinite(of_best)
    np.testing.assert_allclose(found.similarities[known], of_best[known], atol=1e-4)


@pytest.fixture
def seed() -> int:
    number = random.randrange(10**6)
    print(f'seed {number}')
    return number


@pytest.mark.parametrize('num_classes', [9, 200])
def test_class_means_without_the_image(seed, tmp_path, num_classes):
    images = drawn(seed, num_classes=num_classes)
    k = 5
    found = out_of_fold_candidates(images, tmp_path, head='cosine', num_candidates=k)
    near = similarities(images)
    check(found, images, near * LeaveOneOutMeans(images, CPU).scale, near, k)


def test_the_scale_of_class_means_is_the_likeliest(seed):
    images = drawn(seed)
    near = similarities(images)
    known = np.isfinite(near[np.arange(len(images)), images.labels])

    def loss(scale):
        logits = near[known] * scale
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(known.sum()), images.labels[known]]
        return (losses * images.weights[known]).sum()

    scale = LeaveOneOutMeans(images, CPU).scale
    assert loss(scale) < loss(scale * 2**0.5)
    assert loss(scale) < loss(scale / 2**0.5)


@pytest.mark.long
def test_each_fold_is_scored_by_a_classifier_of_the_others(seed, tmp_path):
    images, k = drawn(seed), 4
    found = out_of_fold_candidates(images, tmp_path, head='linear', num_candidates=k, num_folds=3, seed=5)
    folds = stratified_folds(images.labels, 3, seed=5)
    heads = FoldedDiscriminants(images, folds, CPU).heads()
    features = unit(images.values[images.rows].astype(np.float64))
    logits = np.stack([
        feature @ heads[fold].weight.double().numpy().T + heads[fold].bias.double().numpy()
        for feature, fold in zip(features, folds, strict=True)
    ])  # fmt: skip
    check(found, images, logits, similarities(images), k)
    assert found.own[0] < NEVER / 2  # no other image has its label


@pytest.mark.parametrize('head', out_of_fold.HEADS)
def test_resumes_with_the_same_bytes(seed, tmp_path, monkeypatch, head):
    monkeypatch.setattr(out_of_fold, '_ROWS_PER_PART', 32)
    images = drawn(seed)
    options = {'head': head, 'num_candidates': 3, 'num_folds': 3}
    expected = asdict(out_of_fold_candidates(images, tmp_path / 'whole', **options))
    written, write = [], ColumnStore.write

    def stops_sometimes(store, rows, values, errors=()):
        write(store, rows, values, errors)
        store.flush()
        written.append(rows)
        if len(written) % 2 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(ColumnStore, 'write', stops_sometimes)
    for _ in range(20):
        try:
            found = asdict(out_of_fold_candidates(images, tmp_path / 'stopped', **options))
            break
        except KeyboardInterrupt:
            continue
    assert len(written) == -(-len(images) // 32)  # nothing is computed twice
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize('change', ['labels', 'weights', 'values'])
def test_results_of_other_inputs_are_not_used(seed, tmp_path, change):
    images = drawn(seed)
    before = out_of_fold_candidates(images, tmp_path, head='cosine')
    before = {name: np.array(values) for name, values in asdict(before).items()}
    values = getattr(images, change).copy()
    position = images.rows[7] if change == 'values' else 7
    values[position] = {'labels': (values[position] % 8) + 1, 'weights': 0.1, 'values': -values[position]}[change]
    other = JudgedImages(**{**vars(images), change: values})
    after = out_of_fold_candidates(other, tmp_path, head='cosine')
    assert not np.array_equal(before['own_similarity'], after.own_similarity, equal_nan=True)


def candidates_of_rank(rank, count, folder, seed):
    torch.set_num_threads(1)
    found = [
        out_of_fold_candidates(
            drawn(seed), folder / head, head=head, num_folds=3, group=ProcessGroup(rank, count, rank)
        )
        for head in out_of_fold.HEADS
    ]
    return [{name: torch.tensor(np.array(values)) for name, values in asdict(each).items()} for each in found]


@pytest.mark.process
@pytest.mark.long
def test_ranks_share_the_work(seed, tmp_path, monkeypatch):
    (tmp_path / 'ranks').mkdir()
    (tmp_path / 'one').mkdir()
    expected = candidates_of_rank(0, 1, tmp_path / 'one', seed)
    for found in run_ranks(candidates_of_rank, 2, tmp_path, tmp_path / 'ranks', seed):
        for here, there in zip(expected, found, strict=True):
            assert all(torch.equal(here[name].nan_to_num(), there[name].nan_to_num()) for name in here)


def test_two_images_and_impossible_requests(tmp_path):
    images = JudgedImages(np.eye(2, dtype=np.float32), np.arange(2), np.array([0, 1]), 2, np.ones(2, np.float32))
    for head in out_of_fold.HEADS:
        found = out_of_fold_candidates(images, tmp_path / head, head=head)
        assert (found.own < NEVER / 2).all()
        assert np.isnan(found.own_similarity).all()
    one = JudgedImages(np.eye(1, dtype=np.float32), np.arange(1), np.array([0]), 2, np.ones(1, np.float32))
    with pytest.raises(ValueError, match='2 images or more'):
        out_of_fold_candidates(one, tmp_path, head='cosine')


@pytest.mark.parametrize(
    ('sizes', 'head'), [((81, 1280), 'linear'), ((50_030, 128), 'linear'), ((50_030, 2048), 'cosine')]
)
def test_linear_only_where_its_classifiers_fit_into_memory(sizes, head):
    assert choose_head(*sizes, 5) == head
