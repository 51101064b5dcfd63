"""Intervals of tau, curves and the choice of tau, against brute force in decimal arithmetic."""

import json
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.posthoc import tau_intervals as intervals
from lib.posthoc.tau_curve import Curve, choose, image_weights, standard_error, sweep, weighted_accuracy
from lib.posthoc.tau_intervals import adjustment_intervals, log_norms, log_priors, tau_intervals
from lib.posthoc.tau_sweep import NEVER, TauSweep, normalize_classifier, normalize_weight, tau_report
from tests.oracles import posthoc as oracle

MAX_TAU = 1.9371  # no small integers tie here: the last bit of a logarithm would decide
METRICS = ('mean_class_error', 'top1')
KINDS = ('plain', 'negative', 'integers', 'zero_norms', 'equal_norms', 'tiny_and_huge', 'sparse_labels')


def problem(kind: str, seed: int, num_images: int = 9, num_classes: int = 6):
    """A random classifier and features: weight, features, labels."""
    rng = np.random.default_rng([KINDS.index(kind), seed])
    weight = rng.normal(size=(num_classes, 4)) * rng.lognormal(0, 0.7, size=(num_classes, 1))
    labels = rng.integers(0, num_classes, num_images)
    features = rng.normal(size=(num_images, 4)) + 0.7 * weight[labels]
    if kind == 'negative':  # every logit below zero
        weight, features = -np.abs(weight), np.abs(features)
    if kind == 'integers':  # ties, zeros, equal norms
        weight, features = rng.integers(-2, 3, weight.shape), rng.integers(-2, 3, features.shape)
    if kind == 'zero_norms':  # and images on which all others are negative
        weight[rng.integers(0, num_classes, 2)] = 0
        weight, features = -np.abs(weight), features * rng.choice([-1, 1], (num_images, 1))
    if kind == 'equal_norms':
        weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    if kind == 'tiny_and_huge':
        weight *= 10.0 ** rng.integers(-12, 13, size=(num_classes, 1))
    if kind == 'sparse_labels':  # most classes without images
        labels = labels % 2 * 3
    return (torch.tensor(a, dtype=torch.float32) for a in (weight, features)), torch.tensor(labels)


def swept(weight, features, labels):
    collected = TauSweep(weight, max_tau=MAX_TAU)
    for part in torch.arange(len(labels)).split(5):
        collected.update(features[part], labels[part])
    return collected.finish()


def assert_same_as_oracle(low, high, labels, num_classes, scores, sizes, events_of, scores_of):
    """Each image, and both metrics, at 0, at the end and in the middle of all intervals between events."""
    events = set().union(*(events_of(row, sizes, MAX_TAU) for row in scores.tolist()))
    curves = [sweep(low, high, labels, num_classes, metric, MAX_TAU) for metric in METRICS]
    for tau in [0.0, *oracle.midpoints(events, MAX_TAU), MAX_TAU]:
        right = [
            oracle.is_right(scores_of(row, sizes, Decimal(tau)), label)
            for row, label in zip(scores.tolist(), labels.tolist(), strict=True)
        ]
        assert ((low < tau) & (tau < high)).tolist() == right, f'tau {tau}'
        for curve in curves:
            expected = oracle.metric(right, labels.tolist(), curve.metric)
            assert curve.at(tau) == pytest.approx(float(expected), abs=1e-14), f'tau {tau}'


@pytest.mark.parametrize('seed', range(4), ids='seed{}'.format)
@pytest.mark.parametrize('kind', KINDS)
def test_tau_agrees_with_brute_force_everywhere(kind, seed):
    (weight, features), labels = problem(kind, seed)
    scores = features @ weight.T
    norms = [oracle.norm(row) for row in weight.tolist()]
    if kind == 'equal_norms':
        norms = [Decimal(1)] * len(norms)
    low, high = tau_intervals(scores, labels, log_norms(weight), MAX_TAU)
    assert_same_as_oracle(
        low.numpy(),
        high.numpy(),
        labels.numpy(),
        len(weight),
        scores,
        norms,
        oracle.tau_events,
        oracle.tau_scores,
    )


@pytest.mark.parametrize('seed', range(4), ids='seed{}'.format)
@pytest.mark.parametrize('integers', [False, True], ids=['real', 'integer'])
def test_adjustment_agrees_with_brute_force_everywhere(integers, seed):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-3, 4, (10, 6)) if integers else rng.normal(0, 2, (10, 6))
    logits = torch.tensor(logits, dtype=torch.float32)
    labels = torch.tensor(rng.integers(0, 6, 10))
    counts = rng.integers(0, 4, 6) ** 3 + 1
    counts[rng.integers(6)] = 0
    low, high = adjustment_intervals(logits, labels, log_priors(counts), MAX_TAU)
    priors = [Decimal(int(c)) / int(counts.sum()) for c in counts]
    assert_same_as_oracle(
        low.numpy(),
        high.numpy(),
        labels.numpy(),
        6,
        logits,
        priors,
        oracle.adjusted_events,
        oracle.adjusted_scores,
    )


small = st.sampled_from([-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 1e-30, -1e-30, 1e30])


@settings(max_examples=150, deadline=None, print_blob=True)
@given(
    scores=st.lists(small, min_size=5, max_size=5),
    norms=st.lists(st.sampled_from([0.0, 0.25, 1.0, 1.5, 2.0, 2.5, 1e6]), min_size=5, max_size=5),
    label=st.integers(0, 4),
)
def test_one_image_with_awkward_numbers(scores, norms, label):
    logs = torch.tensor(norms, dtype=torch.float64).log()
    low, high = tau_intervals(torch.tensor([scores]), torch.tensor([label]), logs, MAX_TAU)
    scores = torch.tensor(scores).tolist()  # as float32 has them
    exact = [Decimal(n) for n in norms]
    for tau in [0.0, *oracle.midpoints(oracle.tau_events(scores, exact, MAX_TAU), MAX_TAU), MAX_TAU]:
        right = oracle.is_right(oracle.tau_scores(scores, exact, Decimal(tau)), label)
        assert (low.item() < tau < high.item()) == right, (tau, low, high)


@pytest.mark.parametrize('seed', range(3), ids='seed{}'.format)
@pytest.mark.parametrize('sign', ['mixed', 'negative'])
@pytest.mark.parametrize('num_classes', [2, 31, 32, 33, 500])
@pytest.mark.long
def test_groups_do_not_change_the_result(num_classes, sign, seed):
    """Against all pairs at once, without groups, bounds or an order of the classes."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_classes, 8, generator=generator)
    weight *= 0.2 + torch.rand(num_classes, 1, generator=generator)
    features = torch.randn(200, 8, generator=generator)
    if sign == 'negative':
        weight, features = -weight.abs(), features.abs()
    scores, logs = features @ weight.T, log_norms(weight)
    somewhere = MAX_TAU * torch.rand(200, 1, generator=generator)
    labels = (scores * (-somewhere * logs).exp()).argmax(1)  # so that each image is right somewhere
    labels[::10] = torch.randint(0, num_classes, (20,), generator=generator)
    low, high = tau_intervals(scores, labels, logs, MAX_TAU)
    low_too, high_too = adjustment_intervals(scores, labels, logs, MAX_TAU)
    for tau in np.linspace(0, MAX_TAU, 301):
        powered, adjusted = scores.double() * (-tau * logs).exp(), scores.double() - tau * logs
        for values, right in (
            (powered, (low < tau) & (tau < high)),
            (adjusted, (low_too < tau) & (tau < high_too)),
        ):
            own = values.gather(1, labels[:, None])
            assert torch.equal(right, (values >= own).sum(1) == 1), f'tau {tau}'


def test_inputs_are_unchanged_and_batches_do_not_matter(monkeypatch):
    (weight, features), labels = problem('plain', 0, num_images=64, num_classes=70)
    scores, logs = features @ weight.T, log_norms(weight)
    copies = scores.clone(), labels.clone(), logs.clone()
    whole = tau_intervals(scores, labels, logs, MAX_TAU)
    assert all(torch.equal(a, b) for a, b in zip(copies, (scores, labels, logs), strict=True))
    monkeypatch.setattr(intervals, 'PAIRS_AT_ONCE', 64)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    parts = tau_intervals(scores[:, order], order.argsort()[labels], logs[order], MAX_TAU)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_tie_is_wrong_exactly_at_its_tau():
    # 4 / 4^tau against 2 / 2^tau: both 1 at tau 1. The second class wins after it.
    low, high = tau_intervals(
        torch.tensor([[4.0, 2.0]] * 2), torch.tensor([0, 1]), torch.tensor([4.0, 2.0]).double().log(), 2
    )
    assert low.tolist() == [-math.inf, 1.0]
    assert high.tolist() == [1.0, math.inf]
    curve = sweep(low.numpy(), high.numpy(), np.array([0, 1]), 2, 'top1', 2.0)
    assert [curve.at(t) for t in (0.9, 1.0, 1.1)] == [0.5, 0.0, 0.5]


def test_norms_that_differ_by_rounding_are_equal():
    logs = torch.tensor([0.0, 2e-16], dtype=torch.float64)
    low, high = tau_intervals(torch.ones(2, 2), torch.tensor([0, 1]), logs, MAX_TAU)
    assert not (low < high).any()


def test_broken_scores_are_never_right():
    scores = torch.tensor([[math.nan, 1.0], [1.0, math.nan], [math.inf, 1.0], [1.0, -math.inf]])
    low, high = tau_intervals(scores, torch.zeros(4, dtype=torch.int64), torch.zeros(2).double(), 1)
    assert (low < high).tolist() == [False, False, False, True]


def test_one_class_is_always_right():
    low, high = tau_intervals(torch.tensor([[-1.0]]), torch.tensor([0]), torch.zeros(1).double(), 1)
    assert (low.item(), high.item()) == (-math.inf, math.inf)


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('seed', range(5), ids='seed{}'.format)
@pytest.mark.long
def test_never_below_a_grid(metric, seed):
    (weight, features), labels = problem('plain', seed, num_images=400, num_classes=40)
    images = swept(weight, features, labels)
    curve = images.curve(metric)
    optimum = curve.values[curve.best_piece()]
    norms = weight.double().norm(dim=1)
    scores = (features @ weight.T).double()
    worse = 1 if metric == 'mean_class_error' else -1
    for tau in np.linspace(0, MAX_TAU, 2001):
        right = ((scores / norms**tau).argmax(1) == labels).numpy()
        grid = weighted_accuracy(right, labels.numpy(), 40, metric)
        grid = 1 - grid if metric == 'mean_class_error' else grid
        assert worse * (grid - optimum) >= -1e-12, f'tau {tau}'


def test_equal_norms_give_a_flat_curve_and_an_unchanged_checkpoint():
    (weight, features), labels = problem('plain', 0, num_images=200, num_classes=20)
    images = swept(torch.nn.functional.normalize(weight), features, labels)
    chosen, curve = images.choose('mean_class_error')
    assert images.all_equal
    assert len(curve.breaks) == 0
    assert chosen.tau is None
    assert (chosen.optimum, chosen.ends[1]) == (MAX_TAU / 2, MAX_TAU)


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('kind', ['plain', 'negative', 'zero_norms', 'tiny_and_huge'])
def test_saved_model_gives_the_metric_of_the_curve(kind, metric):
    (weight, features), labels = problem(kind, 3, num_images=300, num_classes=20)
    images = swept(weight, features, labels)
    curve = images.curve(metric)
    tau = curve.middle(curve.best_piece())
    new_weight, bias = normalize_classifier(weight, tau)
    predicted = (features @ new_weight.T + bias).argmax(1)
    expected = oracle.metric((predicted == labels).tolist(), labels.tolist(), metric)
    assert curve.at(tau) == pytest.approx(float(expected), abs=1e-12)
    assert weighted_accuracy(images.correct_at(tau), labels.numpy(), 20, metric) == pytest.approx(
        1 - curve.at(tau) if metric == 'mean_class_error' else curve.at(tau)
    )


def test_normalized_rows():
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
    assert torch.allclose(normalize_weight(weight, 1.0).norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    assert torch.equal(normalize_weight(weight, 0.0), weight)
    assert torch.allclose(normalize_weight(weight, 0.5)[0], weight[0] / 5**0.5)
    assert normalize_classifier(weight, 1.0)[1].tolist() == [0, pytest.approx(NEVER), 0]


def test_before_counts_the_bias_unreadable_and_unlabeled_images():
    weight, bias = torch.eye(2), torch.tensor([0.0, 3.0])
    collected = TauSweep(weight, bias, max_tau=1.0)
    features = torch.tensor([[2.0, 1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    labels = torch.tensor([0, 1, 1, -1])
    collected.update(features, labels, readable=torch.tensor([True, True, False, True]))
    images = collected.finish()
    assert images.before_correct.tolist() == [False, True, False]
    assert images.correct_at(0.5).tolist() == [True, True, False]
    assert images.labels.tolist() == [0, 1, 1]
    assert images.metrics(images.correct_at(0.5), np.array([200, 5])) == {
        'top1': 2 / 3,
        'mean_class_error': 0.25,
        'many': 1.0,
        'few': 0.5,
    }


@pytest.mark.parametrize('largest', [6, 60], ids=['exact', 'rounded'])
def test_weights_are_integers_and_add_up(largest):
    labels = np.repeat(np.arange(largest), np.arange(1, largest + 1))  # lcm(1..60) is beyond int64
    weights, total = image_weights(labels, largest + 3, 'mean_class_error')
    assert weights.sum() == total < 2**63
    right = np.random.default_rng(0).random(len(labels)) < 0.5
    expected = 1 - oracle.metric(right.tolist(), labels.tolist(), 'mean_class_error')
    assert abs(Fraction(int(weights[right].sum()), total) - expected) < Fraction(1, 10**15)


def step_curve(levels, breaks, at=None):
    hits = np.array(levels)
    between = np.minimum(hits[1:], hits[:-1]) if at is None else np.array(at)
    return Curve('top1', 1.0, np.array(breaks), hits, between, 100)


def test_optimum_is_the_widest_then_the_first_of_the_best():
    curve = step_curve([90, 60, 90, 60, 90, 50], [1 / 8, 2 / 8, 4 / 8, 5 / 8, 7 / 8])
    assert choose(curve, 0.4, 0.0).optimum == 0.375
    assert choose(step_curve([90, 60, 90], [0.25, 0.75]), 0.4, 0.0).optimum == 0.125


def test_chosen_is_the_middle_of_the_range_within_one_standard_error():
    curve = step_curve([50, 86, 90, 87, 60, 89], [0.1, 0.2, 0.3, 0.5, 0.6])
    chosen = choose(curve, before=0.4, standard_error=0.045)
    assert chosen.ends == (0.1, 0.5)
    assert chosen.tau == pytest.approx(0.3)
    assert choose(curve, before=0.865, standard_error=0.045).ends == (0.2, 0.5)  # never worse than before
    assert choose(curve, before=0.4, standard_error=0.5).ends == (0.0, 1.0)
    dip = step_curve([90, 90], [0.5], at=[20])  # a tie of many images at one point
    assert choose(dip, before=0.4, standard_error=0.1).ends == (0.0, 0.5)


def test_nothing_better_leaves_the_checkpoint_unchanged():
    curve = step_curve([80, 90], [0.5])
    assert choose(curve, before=0.9, standard_error=0.01).tau is None
    assert choose(curve, before=0.89, standard_error=0.01).tau == 0.75


def test_standard_error_is_that_of_repeated_draws():
    """Over repeated draws of a split with 2 to 4 images per class, the estimated variance is right on average."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 5, 60)
    labels, rates = np.repeat(np.arange(60), sizes), rng.random(60)
    draws = rng.random((4000, len(labels))) < rates[labels]
    metric = [weighted_accuracy(right, labels, 60, 'mean_class_error') for right in draws]
    estimated = [standard_error(right, labels, 60, 'mean_class_error') ** 2 for right in draws]
    assert np.mean(estimated) == pytest.approx(np.var(metric), rel=0.06)


def test_standard_error_with_one_image_a_class():
    labels, right = np.arange(100), np.arange(100) < 80
    assert standard_error(right, labels, 100, 'mean_class_error') == pytest.approx((0.16 / 99) ** 0.5)
    assert standard_error(right, labels, 100, 'top1') == pytest.approx(0.04)
    assert standard_error(right[:1], labels[:1], 100, 'mean_class_error') == 0


def test_report_is_plain_json():
    (weight, features), labels = problem('plain', 1, num_images=50)
    images = swept(weight, features, labels)
    chosen, curve = images.choose('mean_class_error')
    before = images.metrics(images.before_correct, np.arange(6) * 30)
    report = json.loads(json.dumps(tau_report(chosen, curve, before, before, 'a note')))
    assert len(report['curve']['value']) == len(report['curve']['tau']) + 1
    assert report['note'] == 'a note'
    assert set(report['before']) == {'top1', 'mean_class_error', 'many', 'medium', 'few'}


@pytest.mark.parametrize('metric', ['accuracy', ''])
def test_other_metrics_are_refused(metric):
    with pytest.raises(ValueError, match='choose'):
        image_weights(np.zeros(1, int), 1, metric)


def test_limits_are_checked():
    with pytest.raises(ValueError, match='max_tau'):
        tau_intervals(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), torch.zeros(2).double(), 0.0)
    with pytest.raises(ValueError, match='at least one'):
        TauSweep(torch.eye(2), max_tau=1.0).finish()
    with pytest.raises(ValueError, match='covers'):
        step_curve([1, 2], [0.5]).at(1.5)
