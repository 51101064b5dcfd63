"""Metrics against the obvious loop, whatever the batches."""

import numpy as np
import pytest
import torch

from lib.metrics.accuracy import ClassCounts, compute_metrics, metrics_from_counts, shot_groups
from lib.metrics.predictions import batch_predictions, join_predictions
from tests.oracles import accuracy as oracle

CPU = torch.device('cpu')


def problem(seed, num_images=60, num_classes=9):
    random = np.random.default_rng(seed)
    labels = np.minimum(random.geometric(0.35, num_images) - 1, num_classes - 2)  # the last class has no image
    logits = random.normal(size=(num_images, num_classes)).astype(np.float32)
    logits[np.arange(num_images), labels] += 1
    labels[random.random(num_images) < 0.1] = -1
    return logits, labels, random.random(num_images) > 0.15, random.choice([0, 19, 20, 100, 101], num_classes)


def measure(logits, labels, readable, train_counts, batch_size=7):
    """Return metrics, predicted classes and counts; assert that the metrics of the predictions are the same."""
    counts = ClassCounts(np.shape(logits)[1], CPU)
    predictions = []
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        batch_labels = torch.as_tensor(labels[part], dtype=torch.int64)
        batch_readable = torch.as_tensor(readable[part], dtype=torch.bool)
        batch = batch_predictions(torch.as_tensor(logits[part], dtype=torch.float32), batch_labels)
        counts.add(batch, batch_labels, batch_readable)
        predictions.append(batch.to_host(batch_labels, batch_readable))
    joined = join_predictions(predictions)
    metrics = counts.metrics(np.asarray(train_counts))
    assert compute_metrics(joined, np.asarray(train_counts)) == pytest.approx(metrics, rel=1e-6)
    return metrics, joined.predicted.tolist(), counts


@pytest.mark.parametrize('num_classes', [2, 4, 5, 6, 9])
@pytest.mark.parametrize('seed', range(6))
def test_metrics_agree_with_the_oracle(seed, num_classes):
    case = problem(seed, num_classes=num_classes)
    found, predicted, _ = measure(*case)
    assert found == pytest.approx(oracle.metrics(*case), rel=1e-6, abs=1e-12)
    logits, _, readable, _ = case
    assert predicted == np.where(readable, logits.argmax(axis=1), -1).tolist()


@pytest.mark.parametrize('batch_size', [1, 13, 60, 100])
def test_batches_do_not_matter(batch_size):
    case = problem(1)
    one, other = measure(*case)[0], measure(*case, batch_size=batch_size)[0]
    assert one.pop('loss') == pytest.approx(other.pop('loss'), rel=1e-6)
    assert one == other  # integer counts, divided once


def test_counts_per_class_are_integers():
    logits, labels, readable, train_counts = problem(2)
    total, correct, correct5 = measure(logits, labels, readable, train_counts)[2].counts()
    assert {total.dtype, correct.dtype, correct5.dtype} == {np.dtype(np.int64)}
    assert total.tolist() == [int((labels == label).sum()) for label in range(9)]
    assert (correct <= correct5).all()
    assert (correct5 <= total).all()


def test_an_unreadable_image_counts_as_wrong():
    logits = np.eye(3) * 9
    found, predicted, _ = measure(logits, [0, 1, 2], [True, False, True], [5, 50, 500])
    assert predicted == [0, -1, 2]
    assert found['top1'] == found['top5'] == pytest.approx(2 / 3)
    assert found['mean_class_error'] == pytest.approx(1 / 3)
    assert (found['few'], found['medium'], found['many']) == (1.0, 0.0, 1.0)


def test_an_unreadable_image_has_no_loss_whatever_its_logits():
    logits = np.array([[1.0, 2.0], [float('inf'), 0.0], [float('nan'), 0.0]])
    found = measure(logits, [0, 1, 0], [True, False, False], [1, 1])[0]
    assert found['loss'] == pytest.approx(np.log(1 + np.e), rel=1e-6)
    alone = measure(logits[1:], [1, 0], [False, False], [1, 1])[0]
    assert 'loss' not in alone
    assert (alone['top1'], alone['mean_class_error']) == (0.0, 1.0)


def test_images_without_labels_are_predicted_and_not_counted():
    logits = np.array([[0.0, 1.0], [1.0, 0.0], [-np.inf, 0.0]])
    found, predicted, _ = measure(logits, [-1, 0, -1], [True, True, True], [1, 1])
    assert predicted == [1, 0, 1]
    assert found == pytest.approx(oracle.metrics(logits.tolist()[1:2], [0], [True], [1, 1]), rel=1e-6)
    assert measure(logits, [-1, -1, -1], [True, True, False], [1, 1])[0] == {}


def test_empty_groups_and_classes_are_absent():
    found = measure(np.eye(3), [0, 0, 0], [True] * 3, [500, 50, 5])[0]
    assert set(found) == {'loss', 'top1', 'top5', 'mean_class_error', 'many'}
    assert found['mean_class_error'] == pytest.approx(2 / 3)  # of the one class that has images
    assert metrics_from_counts(np.zeros(3, int), np.zeros(3, int), np.ones(3, int)) == {}


def test_a_few_classes_are_always_in_the_top_five():
    found = measure(np.zeros((2, 4)) - np.arange(4), [3, 3], [True, False], [1] * 4)[0]
    assert (found['top1'], found['top5']) == (0.0, 0.5)


def test_borders_of_the_groups():
    groups = shot_groups(np.array([0, 19, 20, 100, 101]))
    assert {name: np.flatnonzero(group).tolist() for name, group in groups.items()} == {
        'few': [0, 1],
        'medium': [2, 3],
        'many': [4],
    }


def test_a_mean_over_classes_not_images():
    """Nine correct images of one class, a wrong one of another: 90 % of the images, half of the classes."""
    found = measure(np.tile([1.0, 0.0], (10, 1)), [0] * 9 + [1], [True] * 10, [1, 1])[0]
    assert found['top1'] == 0.9
    assert found['mean_class_error'] == 0.5


def test_ties_are_counted_by_the_predicted_class():
    """An image counts as correct exactly when the predicted class is the label."""
    logits = np.zeros((30, 8))
    labels = np.arange(30) % 8
    found, predicted, _ = measure(logits, labels, [True] * 30, [1] * 8)
    assert found['top1'] == sum(a == b for a, b in zip(predicted, labels, strict=True)) / 30
    assert found['top5'] >= found['top1']
