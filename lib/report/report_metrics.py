"""The data of a report, and the metrics of the valid split, computed once for all parts of the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from lib.metrics.accuracy import FEW_BELOW, MANY_ABOVE, shot_groups
from lib.metrics.class_report import ClassTable, class_table, detailed_metrics
from lib.metrics.intervals import binomial_interval
from lib.metrics.predictions import Predictions, predictions_from_classes
from lib.report.page import between, percent, thousands

_NO_ROWS = np.zeros(0, np.int64)


@dataclass
class ReportData:
    """Data of one run for its report; a part of the page without data is left out.

    Attributes:
        history: objects of metrics.jsonl.
        summary: {'best': {'epoch': 7, metrics}, 'last': {...}} of the valid split; metrics that can be computed from
            `predictions` replace these.
        class_names: (num_classes,) names; if empty, classes are shown as 'class 7'.
        class_parents: (num_classes,) ancestors of each class, root first; empty if unknown.
        train_counts: (num_classes,) int64 images per class in the original training set; empty if unknown.
        predictions: predictions of the model on the valid split.
        open_image: row of the valid split -> RGB image; may raise.
        tau: content of tau.json.
        open_set: measurements on unknown products, with AUROC, FPR95 and OSCR; the content of an .open_set.json.
        is_rebalanced: True if `predictions` are those of the re-balanced model.
        notes: warnings shown at the top.
        corrections: corrections of the labels, as in TrainingSet.
    """

    title: str
    command: str = ''
    history: Sequence[dict[str, Any]] = ()
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    class_parents: Sequence[Sequence[str]] = ()
    train_counts: np.ndarray = field(default_factory=_NO_ROWS.copy)
    predictions: Predictions = field(default_factory=lambda: predictions_from_classes(_NO_ROWS, _NO_ROWS))
    open_image: Callable[[int], Image.Image] | None = None
    tau: dict[str, Any] | None = None
    open_set: dict[str, Any] | None = None
    is_rebalanced: bool = False
    config_text: str = ''
    environment_text: str = ''
    notes: Sequence[str] = ()
    corrections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def name_of(self, label: int) -> str:
        """Return the name of a class, or 'class 7' without names."""
        return str(self.class_names[label]) if label < len(self.class_names) else f'class {label}'


GROUPS = ('many', 'medium', 'few')
ERRORS = {
    'mean_class_error': 'Mean class error',
    'top1': 'Top-1 error',
    'top5': 'Top-5 error',
    'many': 'Error, many',
    'medium': 'Error, medium',
    'few': 'Error, few',
}


@dataclass(frozen=True)
class ReportMetrics:
    """Metrics of the n labeled images of the valid split.

    Attributes:
        rows: (n,) int64 rows of these images in the valid split.
        predictions: (n,) predictions for them.
        overall: the dictionary of detailed_metrics; without many, medium and few if the training counts are unknown.
        table: counts per class.
        low, high: (num_classes,) float64 95 % interval of each class's error; 0 and 1 without images.
    """

    rows: np.ndarray
    predictions: Predictions
    overall: dict[str, Any]
    table: ClassTable
    low: np.ndarray
    high: np.ndarray

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.low)

    def error_interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of an error (a key of ERRORS), or None if it is unknown."""
        if name in ('top1', 'top5'):
            if name not in self.overall:
                return None
            total = len(self.predictions)
            low, high = binomial_interval(round((1 - self.overall[name]) * total), total)
            return float(low), float(high)
        interval = self.overall.get('interval', {}).get(name)
        if interval is None:
            return None
        low, high = interval
        return (low, high) if name.endswith('error') else (1 - high, 1 - low)

    def worst(self) -> np.ndarray:
        """Return the classes with a wrong image, int64, by the lower bound of their error's interval, highest first.

        So 5 wrong images of 5 rank before 1 wrong image of 1.
        """
        num_wrong = self.table.images - self.table.correct
        order = np.lexsort((-num_wrong, -self.low))
        return order[num_wrong[order] > 0]


def compute_report_metrics(data: ReportData) -> ReportMetrics | None:
    """Compute the metrics of the valid split; None if it has no labeled image."""
    rows = np.flatnonzero(data.predictions.labels >= 0)
    if not len(rows):
        return None
    predictions = data.predictions.at(rows)
    has_counts = len(data.train_counts) > 0
    num_classes = int(max(predictions.labels.max(), predictions.predicted.max())) + 1
    num_classes = max(num_classes, len(data.train_counts), len(data.class_names))
    counts = data.train_counts if has_counts else np.zeros(num_classes, np.int64)
    overall = detailed_metrics(predictions, np.asarray(counts), parents=data.class_parents or None)
    table = class_table(predictions, num_classes)
    low, high = binomial_interval(table.images - table.correct, table.images)
    return ReportMetrics(rows, predictions, overall if has_counts else _without_groups(overall), table, low, high)


def _without_groups(metrics: dict[str, Any]) -> dict[str, Any]:
    others = {name: value for name, value in metrics.items() if name not in (*GROUPS, 'head_tail')}
    for name in ('interval', 'calibration'):
        if name in others:
            others[name] = {group: value for group, value in others[name].items() if group not in GROUPS}
    return others


# Column of the table -> key of tau.json.
_TAU_COLUMNS = {'before': 'before', 'after': 'after', 'others': 'cross_fitted'}
GROUP_RANGES = {'many': f'over {MANY_ABOVE}', 'medium': f'{FEW_BELOW} to {MANY_ABOVE}', 'few': f'under {FEW_BELOW}'}


@dataclass(frozen=True)
class MetricCard:
    """One metric as text: its value, its interval, its value after the last epoch, and its value after re-balancing."""

    title: str
    value: str
    interval: str
    last: str
    rebalanced: str


def metric_error(metric: str, value: float) -> float:
    """Return the error of a metric's value: 1 - value for accuracies, value for errors."""
    return value if metric.endswith('error') else 1 - value


def run_facts(data: ReportData, metrics: ReportMetrics | None) -> list[str]:
    """Return short phrases on the size of the run, such as '3 000 classes'."""
    facts = []
    counts = np.asarray(data.train_counts)
    if len(counts):
        facts += [f'{thousands(len(counts))} classes', f'{thousands(counts.sum())} training images']
    if metrics:
        facts.append(f'{thousands(len(metrics.predictions))} valid images')
        if metrics.overall['unreadable']:
            facts.append(f'{thousands(metrics.overall["unreadable"])} unreadable, counted as wrong')
    rates = [e['images_per_second'] for e in data.history if e.get('split') == 'train' and e.get('images_per_second')]
    if rates:
        facts.append(f'{thousands(np.median(rates))} training images per second')
    return facts


def summary_cards(data: ReportData, metrics: ReportMetrics | None) -> list[MetricCard]:
    """Return the model's errors with their intervals; without predictions, those logged for the selected epoch."""
    best, last = data.summary.get('best') or {}, data.summary.get('last') or {}
    after, words = _rebalanced(data)
    current = {**(best or last), **(metrics.overall if metrics else {})}

    def as_text(values: dict[str, Any], name: str) -> str:
        return percent(metric_error(name, values[name])) if values.get(name) is not None else ''

    cards = []
    for name, title in ERRORS.items():
        value = as_text(current, name)
        if value:
            interval = metrics.error_interval(name) if metrics else None
            spread = between(interval) if interval else ''
            last_value, rebalanced = as_text(last, name) if best else '', as_text(after, name)
            cards.append(MetricCard(title, value, spread, last_value, f'{words} {rebalanced}' if rebalanced else ''))
    return cards


def _rebalanced(data: ReportData) -> tuple[dict[str, Any], str]:
    """Return the metrics after re-balancing, and a label for them.

    Cross-fitted metrics come first: they are computed on images that tau was not chosen on, so they estimate the error
    on new images.
    """
    if not data.tau or data.tau.get('chosen') is None:
        return {}, ''
    cross_fitted = data.tau.get('cross_fitted')
    if data.is_rebalanced:
        return cross_fitted or {}, 'cross-fitted'
    return cross_fitted or data.tau.get('after') or {}, 'with tau'


def group_rows(data: ReportData, metrics: ReportMetrics | None) -> list[dict[str, Any]]:
    """Return name, range, num_classes, error and interval (fractions) of the groups that have valid images."""
    if not metrics or not len(data.train_counts):
        return []
    return [
        {
            'name': name,
            'range': GROUP_RANGES[name],
            'num_classes': int(members.sum()),
            'error': metric_error(name, metrics.overall[name]),
            'interval': metrics.error_interval(name),
        }
        for name, members in shot_groups(np.asarray(data.train_counts)).items()
        if name in metrics.overall
    ]


def tau_rows(tau: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return title, before, after and others of each error that tau.json has before and after re-balancing.

    `others`: the error after re-balancing, cross-fitted on images that tau was not chosen on; None if unknown.
    """
    columns = {column: (tau or {}).get(key) or {} for column, key in _TAU_COLUMNS.items()}
    return [
        {'title': title, **{column: _error_in(metrics, name) for column, metrics in columns.items()}}
        for name, title in ERRORS.items()
        if all(columns[column].get(name) is not None for column in ('before', 'after'))
    ]


def _error_in(metrics: dict[str, Any], name: str) -> float | None:
    return metric_error(name, metrics[name]) if metrics.get(name) is not None else None
