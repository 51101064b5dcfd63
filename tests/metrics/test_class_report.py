"""Every metric against scikit-learn where it has it, else against loops; and the limiting cases."""

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn

from lib.metrics.accuracy import metrics_from_counts, shot_groups
from lib.metrics.class_report import class_table, detailed_metrics
from lib.metrics.predictions import Predictions, predictions_from_classes
from tests.metrics.cases import problem
from tests.oracles import class_report as oracle

SEEDS = range(6)


def answers_from(labels, predicted, confidence=0.8):
    labels, predicted = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    confidence = np.where(predicted >= 0, confidence, 0).astype(np.float32)
    losses = np.where((labels >= 0) & (predicted >= 0), 0.5, np.nan).astype(np.float32)
    return Predictions(labels, predicted[:, None], confidence, losses)


@pytest.mark.parametrize('seed', SEEDS)
def test_figures_are_scikit_learns(seed):
    answers, probabilities, train_counts = problem(seed)
    found = detailed_metrics(answers, train_counts)
    known = answers.labels >= 0
    labels, predicted = answers.labels[known], answers.predicted[known]
    present = np.unique(labels)
    macro = sklearn.precision_recall_fscore_support(
        labels, predicted, labels=present, average='macro', zero_division=0
    )[:3]
    assert (found['macro_precision'], found['macro_recall'], found['macro_f1']) == pytest.approx(macro)
    assert found['top1'] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    one_each = 1 / np.bincount(labels)[labels]
    balanced = sklearn.accuracy_score(labels, predicted, sample_weight=one_each)
    assert 1 - found['mean_class_error'] == pytest.approx(balanced) == pytest.approx(found['macro_recall'])
    readable = known & (answers.predicted >= 0)
    classes = np.arange(len(train_counts))
    labels, chances = answers.labels[readable], probabilities[readable]
    assert found['loss'] == pytest.approx(sklearn.log_loss(labels, chances, labels=classes), rel=1e-5)
    one_each = 1 / np.bincount(labels)[labels]
    assert found['balanced_loss'] == pytest.approx(
        sklearn.log_loss(labels, chances, labels=classes, sample_weight=one_each), rel=1e-5
    )
    top5 = sklearn.top_k_accuracy_score(labels, chances, k=5, labels=classes, normalize=False) / known.sum()
    assert found['top5'] == pytest.approx(top5)


@pytest.mark.filterwarnings('ignore:y_pred contains classes')
def test_mean_class_error_is_balanced_accuracys():
    answers, _, train_counts = problem(3)
    known = answers.at(np.flatnonzero((answers.labels >= 0) & (answers.predicted >= 0)))
    expected = sklearn.balanced_accuracy_score(known.labels, known.predicted)
    assert 1 - detailed_metrics(known, train_counts)['mean_class_error'] == pytest.approx(expected)


@pytest.mark.parametrize('seed', SEEDS)
def test_calibration_is_the_loops(seed):
    answers, _, train_counts = problem(seed)
    found = detailed_metrics(answers, train_counts)
    known = (answers.labels >= 0) & (answers.predicted >= 0)
    groups = {'all': known}
    groups |= {name: known & group[answers.labels] for name, group in shot_groups(train_counts).items()}
    assert set(found['calibration']) == {name for name, rows in groups.items() if rows.any()}
    assert found['ece'] == found['calibration']['all']['ece']
    for name, group in found['calibration'].items():
        rows = groups[name]
        confidence, right = answers.confidence[rows], answers.right[rows]
        assert group['ece'] == pytest.approx(oracle.calibration_error(confidence, right))
        assert sum(part['images'] for part in group['bins']) == rows.sum()
        for key, values in (('confidence', confidence), ('accuracy', right)):
            sums = sum(part['images'] * part[key] for part in group['bins'])
            assert sums / rows.sum() == pytest.approx(values.mean()) == pytest.approx(group[key])
        assert all(part['low'] <= part['confidence'] <= part['high'] for part in group['bins'])


@pytest.mark.parametrize('seed', SEEDS)
def test_the_table_is_the_loops(seed):
    answers, _, train_counts = problem(seed)
    table = class_table(answers, len(train_counts))
    rows = oracle.class_rows(answers.labels, answers.predicted, answers.confidence, len(train_counts))
    columns = ('images', 'right', 'accuracy', 'precision', 'confidence', 'mistaken_for', 'num_mistaken')
    for name, expected in zip(columns, zip(*rows, strict=True), strict=True):
        found = getattr(table, name)
        assert found.shape == (len(train_counts),)
        assert found.astype(float) == pytest.approx(np.array(expected, float), nan_ok=True), name


@pytest.mark.parametrize('seed', SEEDS)
def test_head_and_tail_hold_every_class_once(seed):
    answers, _, train_counts = problem(seed)
    found = detailed_metrics(answers, train_counts)
    bins = found['head_tail']
    assert sum(part['classes'] for part in bins) == found['classes'] == len(np.unique(answers.labels)) - 1
    assert sum(part['images'] for part in bins) == found['images']
    mean = sum(part['classes'] * part['accuracy'] for part in bins) / found['classes']
    assert mean == pytest.approx(1 - found['mean_class_error'])
    counts = [count for part in bins for count in reversed(part['train_images'])]
    assert counts == sorted(counts, reverse=True)


def test_head_tail_bins_at_scale():
    counts = np.arange(1000)
    labels = np.repeat(counts, 2)
    found = detailed_metrics(answers_from(labels, np.where(labels < 500, -1, labels)), counts)['head_tail']
    assert [part['accuracy'] for part in found] == [1.0] * 10 + [0.0] * 10
    assert found[0]['train_images'] == [950, 999]


@pytest.mark.parametrize('seed', SEEDS)
def test_counts_and_intervals_are_of_the_same_figures(seed):
    answers, _, train_counts = problem(seed)
    found = detailed_metrics(answers, train_counts)
    table = class_table(answers, len(train_counts))
    plain = metrics_from_counts(table.right, table.images, train_counts)
    assert {name: found[name] for name in plain} == plain
    assert set(found['interval']) == set(plain) - {'top1'}
    for name, (low, high) in found['interval'].items():
        assert 0 <= low <= found[name] <= high <= 1
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found == detailed_metrics(answers, train_counts)
    assert found['unreadable'] == ((answers.predicted < 0) & (answers.labels >= 0)).sum()


def test_a_perfect_model():
    labels = np.arange(60) % 20
    found = detailed_metrics(answers_from(labels, labels, confidence=1.0), np.arange(20) * 10, parents=[['a']] * 20)
    for name in ('top1', 'top5', 'many', 'medium', 'few', 'macro_f1', 'macro_precision', 'coarse_accuracy'):
        assert found[name] == 1.0, name
    assert found['mean_class_error'] == found['ece'] == 0.0
    assert found['interval']['mean_class_error'][0] == 0.0
    assert found['interval']['mean_class_error'][1] > 0.0
    assert found['confusions'] == []
    assert 'mistake_severity' not in found


def test_a_model_that_is_always_wrong():
    labels = np.arange(60) % 20
    found = detailed_metrics(answers_from(labels, (labels + 1) % 20), np.full(20, 50))
    assert found['top1'] == found['macro_f1'] == found['macro_precision'] == found['medium'] == 0.0
    assert found['mean_class_error'] == 1.0
    assert found['ece'] == pytest.approx(0.8)
    assert not {'many', 'few'} & {*found, *found['interval'], *found['calibration']}
    assert found['confusions'][0] == {'label': 0, 'predicted': 1, 'images': 3, 'share': 1.0, 'reverse': 0}


def test_no_image_can_be_read():
    found = detailed_metrics(answers_from([0, 1, 1], [-1, -1, -1]), np.array([5, 5]), parents=[['a'], ['b']])
    assert found['mean_class_error'] == 1.0
    assert found['top5'] == found['coarse_accuracy'] == 0.0
    assert found['unreadable'] == 3
    assert not {'loss', 'balanced_loss', 'ece', 'calibration', 'mistake_severity'} & set(found)


def test_no_labels_no_metrics():
    assert detailed_metrics(answers_from([-1, -1], [0, 1]), np.array([5, 5])) == {}
    assert detailed_metrics(answers_from([], []), np.array([5, 5])) == {}
    assert class_table(answers_from([-1], [0]), 2).images.tolist() == [0, 0]


def test_unknown_labels_change_nothing():
    answers, _, train_counts = problem(1)
    assert detailed_metrics(answers, train_counts) == detailed_metrics(answers.labelled(), train_counts)


@pytest.mark.parametrize(('labels', 'predicted'), [([0, 7], [0, 0]), ([0, 0], [0, 7])])
def test_classes_that_do_not_exist_are_told(labels, predicted):
    for measure in (lambda answers: detailed_metrics(answers, np.ones(7)), lambda answers: class_table(answers, 7)):
        with pytest.raises(ValueError, match='class 7'):
            measure(answers_from(labels, predicted))


def test_predictions_alone_give_what_follows_from_them():
    answers, _, train_counts = problem(1)
    alone = detailed_metrics(predictions_from_classes(answers.labels, answers.predicted), train_counts)
    whole = detailed_metrics(answers, train_counts)
    assert whole.keys() - alone.keys() == {'top5', 'loss', 'balanced_loss', 'ece', 'calibration'}
    assert alone == {name: whole[name] for name in alone}
