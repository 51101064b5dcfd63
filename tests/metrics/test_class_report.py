"""Every metric against scikit-learn where it has one, else against loops; and the limiting cases."""

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn

from lib.metrics.accuracy import metrics_from_counts, shot_groups
from lib.metrics.class_report import class_table, detailed_metrics
from lib.metrics.predictions import predictions_from_classes
from tests.metrics.cases import predictions_of, problem
from tests.oracles import class_report as oracle

SEEDS = range(6)


@pytest.mark.parametrize('seed', SEEDS)
def test_metrics_agree_with_scikit_learn(seed):
    predictions, probabilities, train_counts = problem(seed)
    found = detailed_metrics(predictions, train_counts)
    known = predictions.labels >= 0
    labels, predicted = predictions.labels[known], predictions.predicted[known]
    present = np.unique(labels)
    macro = sklearn.precision_recall_fscore_support(
        labels, predicted, labels=present, average='macro', zero_division=0
    )[:3]
    assert (found['macro_precision'], found['macro_recall'], found['macro_f1']) == pytest.approx(macro)
    assert found['top1'] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    image_weights = 1 / np.bincount(labels)[labels]
    balanced = sklearn.accuracy_score(labels, predicted, sample_weight=image_weights)
    assert 1 - found['mean_class_error'] == pytest.approx(balanced) == pytest.approx(found['macro_recall'])
    readable = known & (predictions.predicted >= 0)
    classes = np.arange(len(train_counts))
    labels, values = predictions.labels[readable], probabilities[readable]
    assert found['loss'] == pytest.approx(sklearn.log_loss(labels, values, labels=classes), rel=1e-5)
    image_weights = 1 / np.bincount(labels)[labels]
    assert found['balanced_loss'] == pytest.approx(
        sklearn.log_loss(labels, values, labels=classes, sample_weight=image_weights), rel=1e-5
    )
    top5 = sklearn.top_k_accuracy_score(labels, values, k=5, labels=classes, normalize=False) / known.sum()
    assert found['top5'] == pytest.approx(top5)


@pytest.mark.filterwarnings('ignore:y_pred contains classes')
def test_mean_class_error_is_that_of_balanced_accuracy():
    predictions, _, train_counts = problem(3)
    known = predictions.at(np.flatnonzero((predictions.labels >= 0) & (predictions.predicted >= 0)))
    expected = sklearn.balanced_accuracy_score(known.labels, known.predicted)
    assert 1 - detailed_metrics(known, train_counts)['mean_class_error'] == pytest.approx(expected)


@pytest.mark.parametrize('seed', SEEDS)
def test_calibration_agrees_with_a_loop(seed):
    predictions, _, train_counts = problem(seed)
    found = detailed_metrics(predictions, train_counts)
    known = (predictions.labels >= 0) & (predictions.predicted >= 0)
    groups = {'all': known}
    groups |= {name: known & group[predictions.labels] for name, group in shot_groups(train_counts).items()}
    assert set(found['calibration']) == {name for name, rows in groups.items() if rows.any()}
    assert found['ece'] == found['calibration']['all']['ece']
    for name, group in found['calibration'].items():
        rows = groups[name]
        confidence, correct = predictions.confidence[rows], predictions.correct[rows]
        assert group['ece'] == pytest.approx(oracle.calibration_error(confidence, correct))
        assert sum(part['images'] for part in group['bins']) == rows.sum()
        for key, values in (('confidence', confidence), ('accuracy', correct)):
            sums = sum(part['images'] * part[key] for part in group['bins'])
            assert sums / rows.sum() == pytest.approx(values.mean()) == pytest.approx(group[key])
        assert all(part['low'] <= part['confidence'] <= part['high'] for part in group['bins'])


@pytest.mark.parametrize('seed', SEEDS)
def test_the_class_table_agrees_with_a_loop(seed):
    predictions, _, train_counts = problem(seed)
    table = class_table(predictions, len(train_counts))
    rows = oracle.class_rows(predictions.labels, predictions.predicted, predictions.confidence, len(train_counts))
    columns = ('images', 'correct', 'accuracy', 'precision', 'confidence', 'mistaken_for', 'num_mistaken')
    for name, expected in zip(columns, zip(*rows, strict=True), strict=True):
        found = getattr(table, name)
        assert found.shape == (len(train_counts),)
        assert found.astype(float) == pytest.approx(np.array(expected, float), nan_ok=True), name


@pytest.mark.parametrize('seed', SEEDS)
def test_head_and_tail_contain_every_class_once(seed):
    predictions, _, train_counts = problem(seed)
    found = detailed_metrics(predictions, train_counts)
    bins = found['head_tail']
    assert sum(part['classes'] for part in bins) == found['classes'] == len(np.unique(predictions.labels)) - 1
    assert sum(part['images'] for part in bins) == found['images']
    mean = sum(part['classes'] * part['accuracy'] for part in bins) / found['classes']
    assert mean == pytest.approx(1 - found['mean_class_error'])
    counts = [count for part in bins for count in reversed(part['train_images'])]
    assert counts == sorted(counts, reverse=True)


def test_head_tail_bins_at_scale():
    counts = np.arange(1000)
    labels = np.repeat(counts, 2)
    found = detailed_metrics(predictions_of(labels, np.where(labels < 500, -1, labels)), counts)['head_tail']
    assert [part['accuracy'] for part in found] == [1.0] * 10 + [0.0] * 10
    assert found[0]['train_images'] == [950, 999]


@pytest.mark.parametrize('seed', SEEDS)
def test_counts_and_intervals_are_of_the_same_metrics(seed):
    predictions, _, train_counts = problem(seed)
    found = detailed_metrics(predictions, train_counts)
    table = class_table(predictions, len(train_counts))
    plain = metrics_from_counts(table.correct, table.images, train_counts)
    assert {name: found[name] for name in plain} == plain
    assert set(found['interval']) == set(plain) - {'top1'}
    for name, (low, high) in found['interval'].items():
        assert 0 <= low <= found[name] <= high <= 1
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found == detailed_metrics(predictions, train_counts)
    assert found['unreadable'] == ((predictions.predicted < 0) & (predictions.labels >= 0)).sum()


def test_a_perfect_model():
    labels = np.arange(60) % 20
    found = detailed_metrics(predictions_of(labels, labels, confidence=1.0), np.arange(20) * 10, parents=[['a']] * 20)
    for name in ('top1', 'top5', 'many', 'medium', 'few', 'macro_f1', 'macro_precision', 'coarse_accuracy'):
        assert found[name] == 1.0, name
    assert found['mean_class_error'] == found['ece'] == 0.0
    assert found['interval']['mean_class_error'][0] == 0.0
    assert found['interval']['mean_class_error'][1] > 0.0
    assert found['confusions'] == []
    assert 'mistake_severity' not in found


def test_a_model_that_is_always_wrong():
    labels = np.arange(60) % 20
    found = detailed_metrics(predictions_of(labels, (labels + 1) % 20), np.full(20, 50))
    assert found['top1'] == found['macro_f1'] == found['macro_precision'] == found['medium'] == 0.0
    assert found['mean_class_error'] == 1.0
    assert found['ece'] == pytest.approx(0.8)
    assert not {'many', 'few'} & {*found, *found['interval'], *found['calibration']}
    assert found['confusions'][0] == {'label': 0, 'predicted': 1, 'images': 3, 'share': 1.0, 'reverse': 0}


def test_no_image_can_be_read():
    found = detailed_metrics(predictions_of([0, 1, 1], [-1, -1, -1]), np.array([5, 5]), parents=[['a'], ['b']])
    assert found['mean_class_error'] == 1.0
    assert found['top5'] == found['coarse_accuracy'] == 0.0
    assert found['unreadable'] == 3
    assert not {'loss', 'balanced_loss', 'ece', 'calibration', 'mistake_severity'} & set(found)


def test_no_labels_no_metrics():
    assert detailed_metrics(predictions_of([-1, -1], [0, 1]), np.array([5, 5])) == {}
    assert detailed_metrics(predictions_of([], []), np.array([5, 5])) == {}
    assert class_table(predictions_of([-1], [0]), 2).images.tolist() == [0, 0]


def test_unknown_labels_change_nothing():
    predictions, _, train_counts = problem(1)
    assert detailed_metrics(predictions, train_counts) == detailed_metrics(predictions.labeled(), train_counts)


@pytest.mark.parametrize(('labels', 'predicted'), [([0, 7], [0, 0]), ([0, 0], [0, 7])])
def test_classes_that_do_not_exist_are_errors(labels, predicted):
    for measure in (
        lambda predictions: detailed_metrics(predictions, np.ones(7)),
        lambda predictions: class_table(predictions, 7),
    ):
        with pytest.raises(ValueError, match='class 7'):
            measure(predictions_of(labels, predicted))


def test_without_probabilities_their_metrics_are_absent():
    predictions, _, train_counts = problem(1)
    alone = detailed_metrics(predictions_from_classes(predictions.labels, predictions.predicted), train_counts)
    whole = detailed_metrics(predictions, train_counts)
    assert whole.keys() - alone.keys() == {'top5', 'loss', 'balanced_loss', 'ece', 'calibration'}
    assert alone == {name: whole[name] for name in alone}
