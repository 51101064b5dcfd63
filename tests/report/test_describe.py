"""Tables of metrics for the terminal."""

import math

import pytest

from lib.report.describe import describe_confidence, describe_metrics, describe_tau
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


def test_confidence_without_a_readable_image():
    lines = describe_confidence(predictions_of([0.0], [-1]), None)
    assert lines[0] == '1 image, mean confidence -, 1 unreadable'
