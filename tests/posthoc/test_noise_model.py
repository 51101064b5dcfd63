"""The model of wrong labels: against loops over dense arrays, on noise that is known, and on degenerate input."""

import random
from dataclasses import replace

import numpy as np
import pytest

from lib.posthoc.class_probabilities import FIRST, ClassProbabilities
from lib.posthoc.noise_model import NoiseModel, _repeated_pairs
from tests.oracles.label_errors import candidates_of, log_sum_exp, noisy_classes, posterior_after


@pytest.fixture
def seed() -> int:
    number = random.randrange(10**6)
    print(f'seed {number}')
    return number


def sizes_drawn(rng, num_classes=5, low=3, high=15):
    return rng.integers(low, high, num_classes)


@pytest.mark.parametrize('num_steps', [1, 2, 4])
def test_steps_are_those_of_a_dense_model(seed, num_steps):
    rng = np.random.default_rng(seed)
    logits, labels, _ = noisy_classes(rng, sizes_drawn(rng) + 12, 0.2, sharpness=3)
    model = NoiseModel(candidates_of(logits, labels, logits.shape[1]))
    history = [model.step() for _ in range(num_steps)]
    expected = posterior_after(num_steps, logits, labels, model.weights[0])
    np.testing.assert_allclose(history, expected['history'], atol=1e-4)
    np.testing.assert_allclose(model.error, expected['error'], atol=1e-4)
    np.testing.assert_allclose(model.class_rate, expected['rate'], atol=1e-4)
    assert model.likeness == pytest.approx(expected['likeness'], abs=1e-4)
    proposal, probability = model.proposals()
    np.testing.assert_allclose(probability, expected['posterior'].max(axis=1), atol=1e-4)
    assert (np.abs(expected['posterior'][np.arange(len(labels)), proposal] - probability) < 1e-4).all()


@pytest.mark.parametrize('tau', [0.5, 0.79, 1.0, 2.0, 3.2])
def test_probabilities_of_other_classes(seed, tau):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=1.5, size=(50, 400))
    labels = rng.integers(0, 400, 50)
    candidates = candidates_of(logits, labels, 10)
    likely, own, rest = ClassProbabilities(candidates).at(slice(None), (tau, 0.0, 0.0))
    exact = np.exp(tau * logits - log_sum_exp(tau * logits)[:, None])
    of_best = np.take_along_axis(exact, candidates.classes.astype(np.int64), 1)
    of_best[candidates.classes == labels[:, None]] = 0
    tolerance = 1e-4 if tau in (1.0, 2.0) else 0.08 if tau < 2 else 0.3
    np.testing.assert_allclose(own, exact[np.arange(50), labels], atol=1e-6, rtol=tolerance)
    np.testing.assert_allclose(likely, of_best, atol=1e-6, rtol=tolerance)
    np.testing.assert_allclose(likely.sum(axis=1) + own + rest, 1, atol=1e-6)


@pytest.mark.parametrize(('rate', 'alike'), [(0.0, False), (0.1, False), (0.3, False), (0.15, True)])
def test_recovers_the_noise(seed, rate, alike):
    rng = np.random.default_rng(seed)
    logits, labels, true = noisy_classes(rng, np.full(30, 60), rate, alike=alike)
    model = NoiseModel(candidates_of(logits, labels, 8))
    history = model.fit()
    assert model.rate == pytest.approx((labels != true).mean(), abs=0.03)
    assert history[-1] > history[0]
    assert min(np.diff(history)) > -0.01  # each image is left out, so that steps may lose a little
    if rate:
        assert (model.likeness > 0.8) == alike
        found = model.error > 0.5
        assert (found & (labels != true)).sum() > 0.85 * max(found.sum(), (labels != true).sum())
        assert (model.proposals()[0][found] == true[found]).mean() > 0.9


def test_similarities_are_evidence(seed):
    rng = np.random.default_rng(seed)
    logits, labels, true = noisy_classes(rng, np.full(20, 40), 0.2, sharpness=2)
    similar = 0.1 * rng.normal(size=logits.shape)
    similar[np.arange(len(true)), true] += 0.5
    without = NoiseModel(candidates_of(logits, labels, 8))
    with_them = NoiseModel(candidates_of(logits, labels, 8, similar))
    wrong = labels != true
    for model in (without, with_them):
        model.fit()
    assert without.weights[1] == 0 < with_them.weights[1]
    mistakes = [((model.error > 0.5) != wrong).sum() for model in (without, with_them)]
    assert mistakes[1] < mistakes[0]


def test_order_of_images_and_classes_is_irrelevant(seed):
    rng = np.random.default_rng(seed)
    logits, labels, _ = noisy_classes(rng, sizes_drawn(rng, 12, 5, 30), 0.2)
    images, classes = rng.permutation(len(labels)), rng.permutation(logits.shape[1])
    renamed = np.empty_like(classes)
    renamed[classes] = np.arange(len(classes))
    plain = NoiseModel(candidates_of(logits, labels, 6))
    moved = NoiseModel(candidates_of(logits[images][:, classes], renamed[labels[images]], 6))
    plain.fit()
    moved.fit()
    np.testing.assert_allclose(moved.error, plain.error[images], atol=1e-4)
    sure = plain.error[images] > 1e-3
    assert (moved.proposals()[0][sure] == renamed[plain.proposals()[0][images]][sure]).all()


def test_images_are_processed_in_parts(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    logits, labels, _ = noisy_classes(rng, np.full(10, 30), 0.2)
    candidates = candidates_of(logits, labels, 5)
    whole = NoiseModel(candidates)
    whole.fit()
    monkeypatch.setattr('lib.posthoc.noise_model.CHUNK', 7)
    monkeypatch.setattr('lib.posthoc.class_probabilities.CHUNK', 7)
    parts = NoiseModel(candidates)
    parts.fit()
    np.testing.assert_allclose(parts.error, whole.error, atol=1e-4)
    assert parts.weights == whole.weights


def test_images_that_cannot_be_judged():
    rng = np.random.default_rng(0)
    logits, labels, _ = noisy_classes(rng, np.array([20, 20, 2, 1, 0, 20]), 0.0)
    logits[:, 4] = -1e30
    candidates = candidates_of(logits, labels, 6)
    log_sum, own = candidates.log_sum.copy(), candidates.own.copy()
    log_sum[0], own[1] = np.nan, -1e30
    model = NoiseModel(replace(candidates, log_sum=log_sum, own=own))
    model.fit()
    assert (model.is_judged == (np.isin(labels, (0, 1, 5)) & (np.arange(len(labels)) > 1))).all()
    assert np.isfinite(model.error).all()
    assert (model.error[~model.is_judged] == 0).all()
    assert (model.proposals()[0][~model.is_judged] == -1).all()
    assert (model.proposals()[0] != 4).all()


def test_classes_without_logits_and_similarities():
    rng = np.random.default_rng(0)
    logits, labels, true = noisy_classes(rng, np.full(20, 30), 0.2, sharpness=4)
    similar = 0.1 * rng.normal(size=logits.shape)
    similar[np.arange(len(true)), true] += 0.5
    logits[:, 5:18], logits[3] = -np.inf, np.nan
    similar[labels == 2, 2] = np.nan
    model = NoiseModel(candidates_of(logits, labels, 10, similar))
    model.fit()
    expected = ~np.isin(labels, np.arange(5, 18))
    expected[3] = False
    assert (model.is_judged == expected).all()
    assert np.isfinite(model.error).all()


@pytest.mark.parametrize(('num_images', 'num_classes'), [(0, 3), (1, 1), (5, 1), (1, 4), (6, 2)])
def test_few_images_and_classes(num_images, num_classes):
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(num_images, num_classes)), np.arange(num_images) % num_classes
    model = NoiseModel(candidates_of(logits, labels, num_classes))
    model.fit()
    assert np.isfinite(model.error).all()
    assert model.is_judged.any() == (num_images == 6)


def test_pairs_at_many_classes(seed):
    rng = np.random.default_rng(seed)
    num_classes = 50_030
    few = rng.integers(num_classes - 40, num_classes, (300, 4))
    candidates = candidates_of(rng.normal(size=(300, 4)), np.zeros(300, np.int64), 4)
    labels = rng.integers(num_classes - 5, num_classes, 300)
    candidates = replace(candidates, classes=few.astype(np.int32), labels=labels, num_classes=num_classes)
    pair, number = _repeated_pairs(candidates)
    names: dict[tuple[int, int], set[int]] = {}
    counts: dict[tuple[int, int], int] = {}
    for row in range(300):
        for column in range(4):
            key = int(few[row, column]), int(labels[row])
            names.setdefault(key, set()).add(int(pair[row, column]))
            counts[key] = counts.get(key, 0) + 1
    repeated = [key for key, count in counts.items() if count > 1]
    assert all(names[key] == {0} for key, count in counts.items() if count == 1)
    assert sorted(next(iter(names[key])) for key in repeated) == list(range(1, number))
    assert all(len(names[key]) == 1 for key in repeated)


def test_the_first_temperature_sharpens():
    nothing = candidates_of(np.zeros((2, 2)), np.zeros(2, np.int64), 2)
    assert ClassProbabilities(nothing).weights(FIRST) == pytest.approx((2, 0, 0))
