"""Tables of metrics for the terminal."""

import math

import pytest

from lib.inference.retrieval import Retrieval
from lib.report.describe import (
    describe_confidence,
    describe_enrolled,
    describe_metrics,
    describe_retrieval,
    describe_tau,
)
from tests.report.test_contact_sheet import predictions_of


def test_rows_are_aligned_and_missing_metrics_are_dashes():
    lines = describe_metrics({'before': {'mean_class_error': 0.25, 'few': 0.5}, 'after': {'mean_class_error': 0.2}})
    assert lines[0].split('  ')[-1].strip() == 'few'
    assert lines[1].split() == ['before', '25.0%', '50.0%']
    assert lines[2].split() == ['after', '20.0%', '-']
    assert len({len(line) for line in lines}) == 1
    assert max(map(len, lines)) <= 80


def test_no_metrics_give_no_lines():
    assert describe_metrics({'test': {}}) == []


def test_without_improvement_the_checkpoint_is_reported_as_unchanged():
    tau = {
        'metric': 'top1',
        'optimum': 0.5,
        'optimum_value': 0.8,
        'stretch': [0.4, 0.6],
        'chosen': None,
        'note': 'flat',
    }
    first, result, note = describe_tau(tau)
    assert 'top-1 accuracy 80.0%' in first
    assert 'unchanged' in result
    assert note == 'flat'
    assert 'chosen tau 0.500' in describe_tau({**tau, 'chosen': 0.5})[1]


@pytest.mark.parametrize(
    ('threshold', 'second'),
    [
        (None, '2 below 50% (a threshold for abstention: --TEST_ABSTAIN_ERROR 0.05)'),
        (0.625, '3 below the abstention threshold 62.5%'),
        (math.inf, '4 below the abstention threshold: no threshold holds the target error'),
    ],
)
def test_confidence(threshold, second):
    """Readable images of 25, 40, 50 and 85 %, and one that cannot be decoded."""
    predictions = predictions_of([0.25, 0.0, 0.85, 0.5, 0.4], [0, -1, 1, 2, 0])
    lines = describe_confidence(predictions, threshold)
    assert lines == ['5 images, mean confidence 50.0%, 1 unreadable', second]
    assert max(map(len, lines)) <= 80


def test_tables_of_searches_have_at_most_80_columns():
    metrics = dict.fromkeys(('recall@1', 'recall@5', 'recall@10', 'r_precision', 'map@r'), 1.0)
    lines = describe_retrieval(dict.fromkeys(('features', 'query_expansion'), Retrieval(metrics, metrics, 9, 0)))
    assert [line[:28].rstrip() for line in lines] == [
        '', 'features over images', 'query_expansion over images', 'features over classes',
        'query_expansion over classes',
    ]  # fmt: skip
    assert {len(line) for line in lines} == {80}
    assert all(line.split()[-5:] == ['100.0%'] * 5 for line in lines[1:])


def test_one_image_of_each_kind_is_named_in_the_singular():
    old = {'before': 1.0, 'after': 1.0, 'num_measured': 1, 'folds': 5}
    new = {'before': 0.0, 'after': 1.0, 'num_measured': 1, 'num_shots': 1}
    metrics = {'old': old, 'new': new, 'known': {}, 'classes': {'tea': {}}, 'num_classes': 3, 'retired': []}
    lines = describe_enrolled(metrics)
    assert lines[0] == '1 new class from 1 image, 3 classes in total'
    assert lines[2].endswith('  1 validation image, cross-fitted (5 folds)')
    assert lines[3].endswith('  1 held-out image')


def test_confidence_without_a_readable_image():
    lines = describe_confidence(predictions_of([0.0], [-1]), None)
    assert lines[0] == '1 image, mean confidence -, 1 unreadable'
