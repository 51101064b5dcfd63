"""Tables of metrics for the terminal."""

from lib.report.describe import describe_metrics, describe_tau


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
    first, note = describe_tau(tau)
    assert 'top-1 accuracy 80.0%' in first
    assert 'unchanged' in first
    assert note == 'flat'
    assert 'chosen tau 0.500' in describe_tau({**tau, 'chosen': 0.5})[1]
