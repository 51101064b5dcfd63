"""report.json and the class table against a loop over the predictions."""

import json
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from lib.metrics.class_report import detailed_metrics
from lib.metrics.predictions import predictions_from_classes
from lib.report.class_charts import data_statistics
from lib.report.class_table import class_columns, class_data, static_rows
from lib.report.report_metrics import ReportData, compute_report_metrics
from lib.report.run_page import write_report
from tests.report.report_data import HOSTILE, NUM_CLASSES, full_data


def rows_of(data, c):
    """The (label, predicted) pairs of class c."""
    pairs = zip(data.predictions.labels.tolist(), data.predictions.predicted.tolist(), strict=True)
    return [pair for pair in pairs if pair[0] == c]


def test_columns_equal_a_loop():
    data = full_data()
    columns = class_columns(data, compute_report_metrics(data))
    for c in range(NUM_CLASSES):
        rows = rows_of(data, c)
        wrong = [predicted for label, predicted in rows if predicted != label]
        mistakes = Counter(predicted for predicted in wrong if predicted >= 0)
        assert columns['name'][c] == data.class_names[c]
        assert columns['parents'][c] == data.class_parents[c]
        assert columns['train_images'][c] == data.train_counts[c]
        assert columns['images'][c] == len(rows)
        assert columns['right'][c] == len(rows) - len(wrong)
        assert columns['error'][c] == pytest.approx(len(wrong) / len(rows), abs=1e-4)
        ends = stats.binomtest(len(wrong), len(rows)).proportion_ci(method='wilson')
        assert columns['error_low'][c] == pytest.approx(ends.low, abs=1e-4)
        assert columns['error_high'][c] == pytest.approx(ends.high, abs=1e-4)
        assert columns['num_mistaken'][c] == max(mistakes.values(), default=0)
        assert mistakes.get(columns['mistaken_for'][c], 0) == columns['num_mistaken'][c]


def test_unknown_values_of_a_class_are_none():
    data = ReportData(
        'x', class_names=['a', 'b', 'c'], predictions=predictions_from_classes(np.array([0, 2]), np.array([0, -1]))
    )
    columns = class_columns(data, compute_report_metrics(data))
    assert columns['error'] == [0.0, None, 1.0]
    assert columns['error_low'][1] is columns['error_high'][1] is None
    assert columns['mistaken_for'] == [None] * 3
    assert 'train_images' not in columns
    assert 'parents' not in columns


def test_worst_classes_are_sorted_by_the_lower_bound_of_their_error():
    labels = np.array([0] + [1] * 5 + [2] * 5 + [3] * 5)
    predicted = np.array([1] + [0] * 5 + [0, 0, 2, 2, 2] + [3] * 5)
    data = ReportData('x', predictions=predictions_from_classes(labels, predicted))
    metrics = compute_report_metrics(data)
    assert metrics.worst().tolist() == [1, 0, 2], '5 of 5, then 1 of 1, then 2 of 5'
    assert [row['label'] for row in static_rows(data, metrics)] == [1, 0, 2]


def test_page_data_equals_the_columns():
    data = full_data()
    metrics = compute_report_metrics(data)
    text = class_data(data, metrics)
    assert HOSTILE not in text
    content, columns = json.loads(text), class_columns(data, metrics)
    for name, column in {
        'images': 'images',
        'right': 'right',
        'train': 'train_images',
        'times': 'num_mistaken',
    }.items():
        assert content[name] == columns[column]
    assert content['low'] == [round(1000 * low) for low in metrics.low]
    assert [content['chains'][index] for index in content['parent']] == [' › '.join(p) for p in data.class_parents]
    assert len(content['chains']) == 3


@pytest.mark.long
def test_report_json_contains_the_metrics(tmp_path):
    data = full_data()
    write_report(tmp_path / 'report.html', data, json_too=True)
    report = json.loads((tmp_path / 'report.json').read_text('utf-8'), parse_constant=pytest.fail)
    expected = json.loads(json.dumps(detailed_metrics(data.predictions, data.train_counts, parents=data.class_parents)))
    intervals = report['valid'].pop('error_interval')
    assert report['valid'] == expected
    assert intervals['mean_class_error'] == expected['interval']['mean_class_error']
    for name in ('top1', 'top5', 'many', 'medium', 'few'):
        assert intervals[name][0] <= 1 - expected[name] <= intervals[name][1]
    assert report['tau'] == data.tau
    assert report['title'] == HOSTILE
    assert len(report['classes']['name']) == NUM_CLASSES
    assert not (tmp_path / 'other.json').exists()


def test_no_groups_without_training_counts():
    metrics = compute_report_metrics(full_data(train_counts=np.zeros(0, np.int64)))
    assert not {'many', 'medium', 'few', 'head_tail'} & set(metrics.overall)
    assert set(metrics.overall['interval']) == {'mean_class_error'}
    assert set(metrics.overall['calibration']) == {'all'}
    assert metrics.error_interval('few') is None


def test_data_statistics():
    counts = np.array([100, 0, 3, 7, 5, 5, 5, 5, 5, 5, 5])
    data = ReportData(
        'x', train_counts=counts, predictions=predictions_from_classes(np.array([0, 2, 2]), np.array([0, 2, 1]))
    )
    statistics = data_statistics(data, compute_report_metrics(data))
    assert statistics == {
        'classes': 11,
        'train_images': 145,
        'valid_images': 3,
        'largest': 100,
        'median': 5.0,
        'smallest': 3,
        'imbalance': pytest.approx(100 / 3),
        'head_share': pytest.approx(107 / 145),  # of two classes
        'classes_without_training': 1,
        'classes_without_valid': 9,
    }
