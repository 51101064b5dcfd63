"""Means and standard deviations against values computed by hand, and the output formats of the table."""

import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from lib.experiments.grid import plan_runs
from lib.experiments.method_list import METHODS
from lib.experiments.records import Published
from lib.experiments.results import (
    METRICS,
    Row,
    Spread,
    dataset_key,
    epoch_metrics,
    headline_metric,
    make_rows,
    table_metrics,
)
from lib.experiments.results import spreads as spreads_of
from lib.experiments.tables import as_csv, as_json, as_latex, as_markdown, as_text, plot_table
from tests.experiments.test_grid import finish


def line(epoch, error, top1, **groups):
    return {'epoch': epoch, 'split': 'valid', 'mean_class_error': error, 'top1': top1, 'loss': 1.0, **groups}


@pytest.fixture
def rows():
    """Three seeds of cross entropy at 0.30, 0.32, 0.37 (mean 0.33, deviation sqrt(0.0013)), one of another method."""
    published = Published('ce', 'cifar10_lt', 100, '28.05', 'Somebody & others, 2021')
    several = [{'last_mean_class_error': error, 'last_top1_error': error} for error in (0.30, 0.32, 0.37)]
    one = [{'last_mean_class_error': 0.25, 'last_top1_error': 0.2, 'last_few': 0.5}]
    return [
        Row(METHODS['ce'], 3, spreads_of(several), published),
        Row(METHODS['tau_norm'], 1, spreads_of(one), None),
    ]


def test_spread_by_hand():
    spread = Spread.of([0.30, 0.32, 0.37])
    assert spread.mean == pytest.approx(0.33, abs=1e-15)
    # ((-0.03)^2 + (-0.01)^2 + 0.04^2) / 2 = 0.0013
    assert spread.deviation == pytest.approx(0.0013**0.5, abs=1e-15)
    assert spread.count == 3
    assert spread.percent() == '33.00 ± 3.61'
    assert Spread.of([0.28049]) == Spread(0.28049, None, 1)
    assert Spread.of([0.28049]).percent() == '28.05'


def test_last_and_best_epoch():
    lines = [
        line(1, 0.5, 0.6, many=0.9, few=0.1),
        line(2, 0.3, 0.65, many=0.8, few=0.3),
        line(4, 0.3, 0.9, few=0.2),
        line(3, 0.4, 0.7, many=0.7),
    ]
    assert epoch_metrics(lines) == {
        'last_mean_class_error': 0.3,
        'last_top1_error': pytest.approx(0.1),
        'last_few': 0.2,
        # The first of equal epochs: its top-1 error is not the lowest one.
        'best_mean_class_error': 0.3,
        'best_top1_error': pytest.approx(0.35),
    }
    assert epoch_metrics([]) == {}


def test_spread_is_over_the_runs_that_have_the_metric():
    spreads = spreads_of([{'last_few': 0.2}, {'last_few': 0.4, 'test_few': 0.1}])
    assert spreads['last_few'].count == 2
    assert spreads['last_few'].mean == pytest.approx(0.3)
    assert spreads['test_few'] == Spread(0.1, None, 1)
    assert set(spreads) == {'last_few', 'test_few'}


def test_rows_from_run_folders(make_grid, tmp_path):
    runs = plan_runs(make_grid('crt,tau_norm,focal', seeds=2))
    by_name = {run.name: run for run in runs}
    for seed, error in enumerate((0.2, 0.4)):
        run = by_name[f'tiny_crt_{seed}']
        finish(run)
        (run.folder / 'metrics.jsonl').write_text(
            json.dumps(line(1, 0.9, 0.1) | {'split': 'train'}) + '\n' + json.dumps(line(1, error, 0.5)) + '\n'
        )
    by_name['tiny_crt_0'].test_metrics.write_text(json.dumps({'split': 'x', 'mean_class_error': 0.125, 'top1': 0.5}))
    tau = by_name['tiny_tau_norm_1']
    finish(tau)
    (tau.folder / 'last.pth').rename(tau.model)
    (tau.folder / 'tau.json').write_text(json.dumps({'before': {}, 'after': {'mean_class_error': 0.3, 'few': 0.1}}))
    finish(by_name['tiny_ce_0'])

    crt, rebalanced = make_rows(runs)
    assert (crt.method.name, crt.seeds) == ('crt', 2)
    assert crt.metrics['last_mean_class_error'].mean == pytest.approx(0.3)
    assert crt.metrics['last_mean_class_error'].deviation == pytest.approx(0.02**0.5)
    assert crt.metrics['test_mean_class_error'] == Spread(0.125, None, 1)
    assert (rebalanced.method.name, rebalanced.seeds) == ('tau_norm', 1)
    assert rebalanced.metrics == {'last_mean_class_error': Spread(0.3, None, 1), 'last_few': Spread(0.1, None, 1)}


@pytest.mark.parametrize(
    ('options', 'expected', 'error'),
    [
        ((), ('cifar10_lt', 100), '28.05'),
        (('--DATASET_IMBALANCE_RATIO', '50'), ('cifar10_lt', 50), '23.55'),
        (('--DATASET_IMBALANCE_RATIO', '20'), ('cifar10_lt', 20), None),
        # A step imbalance is another data set, without a published result.
        (('--DATASET_IMBALANCE_TYPE', 'step'), ('cifar10_lt_step', 100), None),
    ],
)
def test_published_result_is_that_of_the_same_data(make_grid, options, expected, error):
    options = ('--DATASET_NAME', 'cifar10_lt', '--DATASET_ROOT', 'x', '--TRAIN_MAX_EPOCH', '1', *options)
    (run,) = plan_runs(make_grid('ce', options=options))
    finish(run)
    assert dataset_key(run) == expected
    (row,) = make_rows([run])
    assert (row.published.error if row.published else None) == error


def test_top1_is_shown_only_if_it_differs_from_the_mean_class_error(rows):
    # In the second row, it differs; in the first one, it doesn't.
    assert table_metrics(rows) == ['last_mean_class_error', 'last_top1_error', 'last_few']
    assert table_metrics(rows[:1]) == ['last_mean_class_error']


def test_markdown(rows):
    lines = as_markdown(rows, ['A note.']).splitlines()
    assert re.sub(' +', ' ', lines[0]) == (
        '| method | seeds | error, last epoch | top-1 error, last | few accuracy | published error |'
    )
    assert re.sub(' +', ' ', lines[2]) == '| Cross entropy | 3 | 33.00 ± 3.61 | 33.00 ± 3.61 | | 28.05 |'
    assert re.sub(' +', ' ', lines[3]) == '| τ-normalization | 1 | 25.00 | 20.00 | 50.00 | |'
    assert re.fullmatch(r'\| :-+ (\| -+: )+\|', lines[1])
    assert len({len(text) for text in lines[:4]}) == 1
    assert lines[-1] == 'A note.'


def test_text_has_error_and_groups(rows):
    assert as_text(rows).splitlines() == [
        'method    seeds         error  many  medium   few  published',
        'ce            3  33.00 ± 3.61     -       -     -      28.05',
        'tau_norm      1         25.00     -       -  50.0          -',
    ]


def test_text_has_at_most_80_columns():
    longest = max(METHODS.values(), key=lambda method: len(method.name))
    names = [
        f'{split}_{figure}' for split in ('last', 'test') for figure in ('mean_class_error', 'many', 'medium', 'few')
    ]
    seeds = [dict.fromkeys(names, value) for value in (0.0, 1.0, 1.0)]
    row = Row(longest, 100, spreads_of(seeds), Published(longest.name, 'cifar10_lt', 100, '100.00', 'Somebody'))
    lines = as_text([row]).splitlines()
    assert 'test error' in lines[0]
    assert max(map(len, lines)) <= 80


def test_csv_can_be_parsed(rows):
    first, second = csv.DictReader(io.StringIO(as_csv(rows)))
    assert first['method'] == 'ce'
    assert first['seeds'] == '3'
    assert float(first['last_mean_class_error']) == pytest.approx(0.33)
    assert float(first['last_mean_class_error_std']) == pytest.approx(0.0013**0.5)
    assert float(first['published_error']) == pytest.approx(0.2805)
    assert first['published_source'] == 'Somebody & others, 2021'
    assert second['last_mean_class_error_std'] == second['published_error'] == second['test_few'] == ''
    assert all(f'{name}_std' in first for name in METRICS)


def test_latex(rows):
    odd = Row(METHODS['ce'], 1, rows[1].metrics, None)
    object.__setattr__(odd, 'method', type(odd.method)('x', 'loss', r'a_b & 50% {c} ~ ^ # $ \d', 'p', 'e'))
    text = as_latex([*rows, odd], ['100 %\nof it'])
    lines = text.splitlines()
    assert lines[1] == '% 100 % of it'
    assert lines.count('\\toprule') == lines.count('\\midrule') == lines.count('\\bottomrule') == 1
    body = [text for text in lines if text.endswith(r' \\')]
    assert len(body) == 4
    (columns,) = re.findall(r'\\begin\{tabular\}\{(l r*|lr*)\}', text)
    assert {len(re.findall(r'(?<!\\)&', text)) for text in body} == {len(columns) - 1}
    assert r'33.00 $\pm$ 3.61' in text
    assert r'$\tau$-normalization' in text
    assert r'a\_b \& 50\% \{c\} \textasciitilde{} \textasciicircum{} \# \$ \textbackslash{}d & 1' in text
    assert text.isascii()


def test_json(rows):
    content = json.loads(json.dumps(as_json(rows, command='python x')))
    assert content['figures']['ce_last_mean_class_error'] == pytest.approx(0.33)
    assert content['figures']['tau_norm_last_few'] == 0.5
    first, second = content['methods']
    assert first['figures']['last_mean_class_error'] == {
        'mean': pytest.approx(0.33), 'std': pytest.approx(0.0013**0.5), 'seeds': 3,
    }  # fmt: skip
    assert first['published'] == {'error': pytest.approx(0.2805), 'source': 'Somebody & others, 2021'}
    assert second['published'] is None
    assert content['command'] == 'python x'


@pytest.mark.long
def test_chart(rows, tmp_path):
    assert headline_metric(rows) == 'last_mean_class_error'
    with_test = [Row(row.method, row.seeds, row.metrics | {'test_mean_class_error': Spread(0.1, None, 1)}, None)
                 for row in rows]  # fmt: skip
    assert headline_metric(with_test) == 'test_mean_class_error'
    assert headline_metric([rows[0], with_test[1]]) == 'last_mean_class_error'
    heights = []
    for number in (1, 2, 46):
        path = plot_table(tmp_path / f'{number}.png', (rows * 23)[:number], 'a $ title')
        with Image.open(path) as image:
            assert image.format == 'PNG'
            assert 1000 < image.width < 1300
            heights.append(image.height)
            gray = np.asarray(image.convert('L'))
            assert gray.min() < 100
            # The edges of the image are blank, so nothing is cut off.
            assert gray[[0, -1]].min() == gray[:, [0, -1]].min() == 255
    assert 150 < heights[0] < heights[1] < heights[2] < 3000
    assert plot_table(tmp_path / 'none.png', [Row(METHODS['ce'], 1, {}, None)], '') is None
    assert not (tmp_path / 'none.png').exists()
