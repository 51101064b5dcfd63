"""The results of a grid: metrics of each run, their mean and standard deviation over seeds, and published errors."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lib.experiments.grid import SubRun
from lib.experiments.method_list import Method
from lib.experiments.records import Published, published_for, read_published
from lib.runtime.json_file import Record, numbers_in, read_json
from lib.trainer.checkpointing.state import read_history

_GROUPS = ('many', 'medium', 'few')
# Metric -> heading. Errors and accuracies are fractions, except in printed tables.
METRICS = {
    'last_mean_class_error': 'error, last epoch',
    'best_mean_class_error': 'error, best epoch',
    'last_top1_error': 'top-1 error, last',
    'best_top1_error': 'top-1 error, best',
    **{f'last_{group}': f'{group} accuracy' for group in _GROUPS},
    'test_mean_class_error': 'test error',
    'test_top1_error': 'test top-1 error',
    **{f'test_{group}': f'test {group} accuracy' for group in _GROUPS},
}
# On a balanced split, the top-1 error equals the mean class error.
_TOP1 = {
    'last_top1_error': 'last_mean_class_error',
    'best_top1_error': 'best_mean_class_error',
    'test_top1_error': 'test_mean_class_error',
}


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for a single value) over `count` seeds, fractions."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> 'Spread':
        """Compute the spread of the values of several seeds."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def percent(self) -> str:
        """Format in percent, such as '28.05 ± 0.31'; without the deviation for a single seed."""
        return f'{100 * self.mean:.2f}' + ('' if self.deviation is None else f' ± {100 * self.deviation:.2f}')


@dataclass(frozen=True)
class Row:
    """One method: number of finished seeds, metrics, and the published error if there is one."""

    method: Method
    seeds: int
    metrics: dict[str, Spread]
    published: Published | None


class _TauFile(msgspec.Struct):
    after: Record


def run_metrics(run: SubRun) -> dict[str, float]:
    """Return the metrics of a finished run, {name of METRICS: fraction}; unknown ones are absent."""
    if run.method.script == 'main.py':
        valid = [line for line in read_history(run.folder) if line.get('split') == 'valid']
        metrics = epoch_metrics(valid)
    else:
        # tau_norm.py writes one model, so there is no best epoch.
        after = read_json(run.folder / 'tau.json', _TauFile).after
        metrics = _named('last', after)
    if run.test_metrics.exists():
        metrics |= _named('test', read_json(run.test_metrics, Record))
    return metrics


def epoch_metrics(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the metrics of the last epoch, and the errors of the epoch with the lowest mean class error.

    If several epochs are best, the first one is used.
    """
    if not lines:
        return {}
    errors_of = {id(line): numbers_in(line).get('mean_class_error', math.inf) for line in lines}
    best = _named('best', min(lines, key=lambda line: (errors_of[id(line)], line['epoch'])))
    errors = {name: value for name, value in best.items() if name.endswith('error')}
    return _named('last', max(lines, key=lambda line: line['epoch'])) | errors


def _named(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    numbers = numbers_in(metrics)
    values = {name: numbers[name] for name in ('mean_class_error', *_GROUPS) if name in numbers}
    if 'top1' in numbers:
        values['top1_error'] = 1 - numbers['top1']
    return {f'{prefix}_{name}': value for name, value in values.items()}


def make_rows(runs: Sequence[SubRun]) -> list[Row]:
    """Return one row per method, in the order of the runs.

    Methods that were run only because others need them, and methods without a finished run, are left out.
    """
    published = read_published()
    by_method: dict[str, list[SubRun]] = {}
    for run in runs:
        if run.in_table:
            by_method.setdefault(run.method.name, []).append(run)
    rows = []
    for method_runs in by_method.values():
        metrics = [run_metrics(run) for run in method_runs if run.is_trained()]
        if metrics:
            method = method_runs[0].method
            reference = published_for(published, method.name, *dataset_key(method_runs[0]))
            rows.append(Row(method, len(metrics), spreads(metrics), reference))
    return rows


def spreads(runs: Sequence[dict[str, float]]) -> dict[str, Spread]:
    """Return mean and standard deviation of each metric over the runs that have it."""
    values = {name: [metrics[name] for metrics in runs if name in metrics] for name in METRICS}
    return {name: Spread.of(of_runs) for name, of_runs in values.items() if of_runs}


def dataset_key(run: SubRun) -> tuple[str, int | None]:
    """Return data set and imbalance as in published.csv: ('cifar10_lt', 100), ('imagenet_lt', None)."""
    data = run.cfg.DATASET
    if not data.NAME.startswith('cifar'):
        return run.grid.label, None
    # Another profile of class sizes than the exponential one is another data set.
    name = data.NAME if data.IMBALANCE_TYPE == 'exp' else f'{data.NAME}_{data.IMBALANCE_TYPE}'
    return name, round(data.IMBALANCE_RATIO)


def table_metrics(rows: Sequence[Row]) -> list[str]:
    """Return the columns of a printed table: metrics of any row, top-1 only if it differs from mean class error."""
    columns = []
    for name in METRICS:
        with_metric = [row for row in rows if name in row.metrics]
        same = _TOP1.get(name)
        if same:
            with_metric = [row for row in with_metric if abs(row.metrics[name].mean - row.metrics[same].mean) > 1e-9]
        if with_metric:
            columns.append(name)
    return columns


def headline_metric(rows: Sequence[Row]) -> str:
    """Return the metric of the chart: the test error if every row has one, else the valid error."""
    on_test = all('test_mean_class_error' in row.metrics for row in rows)
    return 'test_mean_class_error' if on_test else 'last_mean_class_error'
