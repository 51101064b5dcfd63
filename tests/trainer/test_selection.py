"""Selection of the best model, against loops over images with exact fractions, and on simulated runs."""

from fractions import Fraction
from functools import cache
from itertools import product

import numpy as np
import pytest
from scipy import integrate, stats

from lib.metrics.accuracy import metrics_from_counts
from lib.metrics.paired import mean_weights, paired_difference
from lib.metrics.predictions import Predictions, predictions_from_classes
from lib.trainer.selection import LAST, ModelSelector, Selection, expected_maximum


def predictions_of(labels, correct, losses=None):
    """Return predictions; a wrong one is the next class."""
    wrong = (labels + 1) % (labels.max() + 1)
    found = predictions_from_classes(labels, np.where(correct, labels, wrong))
    return found if losses is None else Predictions(found.labels, found.topk, found.probabilities, losses)


def metrics_of(found):
    num_classes = int(found.labels.max()) + 1
    known = found.labels >= 0
    correct, total = (np.bincount(found.labels[rows], minlength=num_classes) for rows in (found.correct, known))
    metrics = metrics_from_counts(correct, total, np.zeros(num_classes))
    return metrics | {'loss': float(np.nanmean(found.losses))} if np.isfinite(found.losses).any() else metrics


def select(selector, epochs, start=None, first=1):
    """Return the selection after epochs of predictions."""
    selection = start or Selection()
    for epoch, found in enumerate(epochs, first):
        selection = selector.update(selection, epoch, metrics_of(found), found)
    return selection


def exact_weights(labels, metric):
    known = [label for label in labels if label >= 0]
    weights = []
    for label in labels:
        if label < 0:
            weights.append(Fraction(0))
        elif metric == 'mean_class_error':
            weights.append(Fraction(1, len(set(known)) * known.count(label)))
        else:
            weights.append(Fraction(1, len(known)))
    return weights


@cache
def exact_maximum(number):
    def density(value):
        return value * number * stats.norm.pdf(value) * stats.norm.cdf(value) ** (number - 1)

    return integrate.quad(density, -12, 12)[0]


def slow_select(labels, scores, metric, one_standard_error):
    """Return (best, selected) epoch of (epochs, images) scores by loops over epochs and images."""
    weights = exact_weights(labels.tolist(), metric)
    scores = [[Fraction(float(score)) for score in row] for row in scores]
    means = [sum(weight * score for weight, score in zip(weights, row, strict=True)) for row in scores]
    best = selected = 0
    for epoch in range(1, len(scores)):
        if means[epoch] >= means[best]:
            best = selected = epoch
            continue
        pairs = zip(weights, scores[epoch], scores[best], strict=True)
        variance = float(sum((weight * (new - old)) ** 2 for weight, new, old in pairs))
        limit = variance**0.5 * (1 + exact_maximum(epoch + 1) / 2**0.5)
        if one_standard_error and float(means[best] - means[epoch]) <= limit:
            selected = epoch
    return best + 1, selected + 1


@pytest.mark.long
@pytest.mark.parametrize('metric', ['mean_class_error', 'top1', 'loss'])
@pytest.mark.parametrize('one_standard_error', [True, False])
@pytest.mark.parametrize('seed', range(2))
def test_against_loops_over_images(metric, one_standard_error, seed):
    rng = np.random.default_rng(seed)
    for _ in range(10):
        num_images, num_epochs = int(rng.integers(3, 30)), int(rng.integers(1, 9))
        labels = rng.integers(-1, 6, num_images)  # classes of one image, and images without a label
        labels[0] = 0
        correct = rng.random((num_epochs, num_images)) < rng.choice([0.3, 0.7, 0.95], (num_epochs, 1))
        losses = rng.exponential(size=(num_epochs, num_images)).round(2).astype(np.float32)
        losses[:, labels < 0] = np.nan
        scores = np.where(labels < 0, 0, -losses) if metric == 'loss' else correct & (labels >= 0)
        epochs = [predictions_of(labels, *row) for row in zip(correct, losses, strict=True)]
        found = select(ModelSelector(metric, one_standard_error), epochs)
        expected = slow_select(labels, scores, metric, one_standard_error)
        assert (found.best_epoch, found.selected_epoch) == expected
        metrics = [metrics_of(row)[metric] for row in epochs]
        assert (found.best_result, found.selected_result) == (metrics[expected[0] - 1], metrics[expected[1] - 1])


@pytest.mark.parametrize('per_class', [True, False])
@pytest.mark.parametrize('seed', range(2))
def test_the_standard_error_is_that_of_random_signs(per_class, seed):
    """Two equally good models: the difference of each image has either sign. All combinations, with exact fractions."""
    rng = np.random.default_rng(seed)
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3, -1, 4])
    first, second = rng.random((2, len(labels))) < 0.5
    second[:3] = ~first[:3]
    weights = exact_weights(labels.tolist(), 'mean_class_error' if per_class else 'top1')
    np.testing.assert_allclose(mean_weights(labels, per_class=per_class), [float(weight) for weight in weights])
    changed = [weight for weight, one, two in zip(weights, first, second, strict=True) if one != two]
    sums = [
        sum(map(Fraction.__mul__, changed, map(Fraction, signs))) for signs in product((1, -1), repeat=len(changed))
    ]
    variance = sum(value**2 for value in sums) / len(sums)
    difference, error = paired_difference(first, second, mean_weights(labels, per_class=per_class))
    assert error == pytest.approx(float(variance) ** 0.5, rel=1e-12)
    exact = sum(weight * (int(two) - int(one)) for weight, one, two in zip(weights, first, second, strict=True))
    assert difference == pytest.approx(float(exact), abs=1e-15)


def test_one_standard_error_of_the_sample_gives_the_same_decision():
    """Without classes: the sample variance of the differences, and McNemar's statistic."""
    for num_images, gained, lost in product((2, 7, 33), range(6), range(1, 6)):
        if gained + lost > num_images:
            continue
        values = np.repeat([1, -1, 0], [gained, lost, num_images - gained - lost])
        first, second = values < 0, values > 0
        difference, error = paired_difference(first, second, mean_weights(np.zeros(num_images, int), per_class=False))
        sample = Fraction(int((values**2).sum()), 1) - Fraction(int(values.sum()) ** 2, num_images)
        within = Fraction(int(values.sum()), num_images) ** 2 <= sample / (num_images * (num_images - 1))
        assert (difference >= 0 or -difference <= error * (1 + 1e-9)) == (within or gained >= lost)
        assert (abs(difference) <= error * (1 + 1e-9)) == ((gained - lost) ** 2 <= gained + lost)


def test_the_expected_maximum():
    for number in (1, 2, 3, 60, 1000):
        assert expected_maximum(number) == pytest.approx(exact_maximum(number), abs=1e-4)


def simulated(rng, num_images, accuracies):
    """Return the predictions of a run whose epochs differ by chance and by their expected accuracy."""
    labels = np.arange(num_images) % 15
    return [predictions_of(labels, rng.random(num_images) < accuracy) for accuracy in accuracies]


@pytest.mark.long
@pytest.mark.parametrize(('metric', 'num_images'), [('mean_class_error', 33), ('top1', 33), ('mean_class_error', 300)])
@pytest.mark.parametrize('seed', range(2))
def test_with_pure_noise_the_last_epoch_is_selected(metric, num_images, seed):
    rng = np.random.default_rng(seed)
    selections = [select(ModelSelector(metric), simulated(rng, num_images, [0.8] * 60)) for _ in range(50)]
    selected = np.array([one.selected_epoch for one in selections])
    assert (selected == 60).mean() >= 0.75  # expected: 0.9 or more
    assert (selected > 54).mean() >= 0.95
    # The old rule selects any epoch, by chance.
    assert np.median([one.best_epoch for one in selections]) < 55


@pytest.mark.parametrize('num_images', [60, 1000])
@pytest.mark.parametrize('seed', range(2))
def test_a_real_peak_is_kept(num_images, seed):
    """The model is better until epoch 20: at 1,000 images by 10 points, at 60 by 40."""
    rng = np.random.default_rng(seed)
    after = 0.8 if num_images == 1000 else 0.5
    for _ in range(10):
        found = select(ModelSelector('top1'), simulated(rng, num_images, [0.6] * 10 + [0.9] * 10 + [after] * 20))
        assert 11 <= found.selected_epoch <= 20
        assert found.selected_result >= found.best_result - 0.2


def test_equal_epochs_and_the_best_rule():
    labels = np.array([0, 0, 1, 1, 2])
    rows = [[1, 0, 1, 0, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]]
    epochs = [predictions_of(labels, np.array(row, bool)) for row in rows]
    found = select(ModelSelector('top1', False), epochs)
    assert (found.best_epoch, found.selected_epoch) == (3, 3), 'the latest of equal ones'
    found = select(ModelSelector('mean_class_error', True), epochs)
    assert (found.best_epoch, found.selected_epoch) == (3, 5), 'the latest within one standard error'
    # One class has its images wrong, in another place of the sum: the mean is the same.
    rows = [[1, 0, 1, 1, 1], [1, 1, 0, 1, 1]]
    found = select(
        ModelSelector('mean_class_error', False), [predictions_of(labels, np.array(row, bool)) for row in rows]
    )
    assert (found.best_epoch, found.selected_epoch) == (2, 2)


def test_the_last_epoch_without_images_to_select_by():
    selector = ModelSelector(LAST)
    selection = Selection()
    for epoch in (1, 2, 3):
        selection = selector.update(selection, epoch, {}, None)
        assert selection.selected_epoch == epoch
    (line,) = selector.describe(selection, 3)
    assert line == 'selected epoch 3 of 3: the last one, since there are no images to select by'
    assert len(line) <= 80
    (line,) = ModelSelector('top1').describe(Selection(selected_epoch=3), 3)
    assert line == 'selected epoch 3 of 3: the last one, since no file has a better one'


def test_epochs_without_validation():
    labels = np.array([0, 1, 2])
    found, selector = predictions_of(labels, labels == 1), ModelSelector('top1')
    first = selector.update(Selection(), 1, {}, None)
    second = selector.update(first, 2, {}, None)
    assert (first.selected_epoch, second.selected_epoch) == (1, 2), 'the newest until the first validation'
    third = selector.update(second, 3, metrics_of(found), found)
    fourth = selector.update(third, 4, {}, None)
    assert (third.selected_epoch, fourth.selected_epoch, fourth.num_epochs) == (3, 3, 1)


def test_losses_that_are_unknown_or_infinite():
    labels = np.zeros(4, int)
    rows = [[1, np.nan, 2, 3], [1, np.nan, 1, 3], [np.inf, np.nan, 1, 3], [np.nan, np.nan, np.nan, np.nan]]
    epochs = [predictions_of(labels, labels == 0, np.array(row, np.float32)) for row in rows]
    selector = ModelSelector('loss')
    assert select(selector, epochs[:2]).best_epoch == 2
    for order, expected in (([0, 2], 1), ([2, 0], 2), ([1, 3], 1), ([3, 1], 2), ([2, 2], 2), ([3, 3], 2)):
        found = select(selector, [epochs[index] for index in order])
        assert (found.best_epoch, found.selected_epoch) == (expected, expected), order


@pytest.mark.parametrize(
    'changed', [ModelSelector('top1', True, 'others'), ModelSelector('mean_class_error', True, 'images')]
)
@pytest.mark.parametrize('seed', range(2))
def test_scores_that_are_not_comparable_are_forgotten(changed, seed):
    epochs = simulated(np.random.default_rng(seed), 40, [0.9, 0.9, 0.2])
    before = select(ModelSelector('top1', True, 'images'), epochs[:2])
    after = select(changed, epochs[2:], before, first=3)
    assert (after.best_epoch, after.selected_epoch, after.num_epochs) == (3, 3, 1)
    same = select(ModelSelector('top1', True, 'images'), epochs[2:], before, first=3)
    assert same.selected_epoch == before.selected_epoch


@pytest.mark.parametrize('metric', ['mean_class_error', 'top1', 'loss'])
def test_the_reason_in_lines_of_80_columns(metric):
    labels = np.arange(30) % 15
    good, bad = np.arange(30) >= 1, np.arange(30) >= 25
    worse = ~np.isin(np.arange(30), [1, 2, 3])
    epochs = [predictions_of(labels, row, np.where(row, 0.1, 1234).astype(np.float32)) for row in (good, worse, bad)]
    selector = ModelSelector(metric)
    lines = [selector.describe(select(selector, epochs[:number]), 1000) for number in (1, 2)]
    lines.append(selector.describe(select(selector, [epochs[0], epochs[2]]), 1000))
    assert all(len(line) <= 80 for part in lines for line in part), lines
    assert selector.describe(Selection(best_epoch=3, best_result=0.1), 1000) == [], 'a run of an earlier version'
    if metric == 'top1':
        assert lines[1] == [
            'selected epoch 2 of 1000: top-1 accuracy 90.0%; best: 96.7% in epoch 1',
            '6.7 points worse; expected by chance 2.7 points, standard error 6.7 points',
        ]
        assert lines[2] == [
            'selected epoch 1 of 1000: best top-1 accuracy, 96.7%',
            'later epochs are worse by more than chance and one standard error',
        ]
