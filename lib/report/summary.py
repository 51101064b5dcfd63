"""The figures of a report, as text and table rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.metrics.accuracy import FEW_BELOW, MANY_ABOVE, shot_groups
from lib.report.charts import metric_error
from lib.report.report_metrics import ERRORS, ReportMetrics, ReportData

_TAU_PARTS = {'before': 'before', 'after': 'after', 'others': 'cross_fitted'}
GROUP_RANGES = {'many': f'over {MANY_ABOVE}', 'medium': f'{FEW_BELOW} to {MANY_ABOVE}', 'few': f'under {FEW_BELOW}'}


@dataclass(frozen=True)
class MetricCard:
    """A headline figure with its interval, that of the last epoch, and what re-balancing made of it, in words."""

    title: str
    value: str
    interval: str
    last: str
    rebalanced: str


def percent(value: float | None) -> str:
    """Format a fraction as a percentage with one decimal; a dash for what is not a finite number."""
    return f'{100 * value:.1f}\u202f%' if value is not None and math.isfinite(value) else '–'


def between(ends: Sequence[float]) -> str:
    """Format an interval of fractions, with one decimal and one sign."""
    return f'{100 * ends[0]:.1f}–{100 * ends[1]:.1f}\u202f%'


def points(difference: float) -> str:
    """Format a difference of fractions in percentage points, with its sign."""
    text = f'{100 * difference:+.1f}'
    return '0.0' if text[1:] == '0.0' else text.replace('-', '−')


def thousands(value: float) -> str:
    """Format a count with thin spaces between thousands."""
    return f'{value:,.0f}'.replace(',', '\u202f')


def run_facts(data: ReportData, measured: ReportMetrics | None) -> list[str]:
    """Say in a few words each how large the run was."""
    facts = []
    counts = np.asarray(data.train_counts)
    if len(counts):
        facts += [f'{thousands(len(counts))} classes', f'{thousands(counts.sum())} training images']
    if measured:
        facts.append(f'{thousands(len(measured.answers))} valid images')
        if measured.metrics['unreadable']:
            facts.append(f'{thousands(measured.metrics["unreadable"])} unreadable, counted as wrong')
    rates = [e['images_per_second'] for e in data.history if e.get('split') == 'train' and e.get('images_per_second')]
    if rates:
        facts.append(f'{thousands(np.median(rates))} training images a second')
    return facts


def summary_cards(data: ReportData, measured: ReportMetrics | None) -> list[MetricCard]:
    """Return the errors of the model (those of the best epoch where it was not measured) with their intervals."""
    best, last = data.summary.get('best') or {}, data.summary.get('last') or {}
    after, words = _rebalanced(data)
    metrics = {**(best or last), **(measured.metrics if measured else {})}

    def shown(metrics: dict[str, Any], name: str) -> str:
        return percent(metric_error(name, metrics[name])) if metrics.get(name) is not None else ''

    cards = []
    for name, title in ERRORS.items():
        value = shown(metrics, name)
        if value:
            interval = measured.error_interval(name) if measured else None
            spread = between(interval) if interval else ''
            last_one, other = shown(last, name) if best else '', shown(after, name)
            cards.append(MetricCard(title, value, spread, last_one, f'{words} {other}' if other else ''))
    return cards


def _rebalanced(data: ReportData) -> tuple[dict[str, Any], str]:
    """Return the figures that stand beside the model's own, and what to call them.

    Where that was measured, they are those on images that tau was not chosen on: what is to be expected of others.
    """
    if not data.tau or data.tau.get('chosen') is None:
        return {}, ''
    others = data.tau.get('cross_fitted')
    if data.is_rebalanced:
        return others or {}, 'on others'
    return others or data.tau.get('after') or {}, 'with tau'


def group_rows(data: ReportData, measured: ReportMetrics | None) -> list[dict[str, Any]]:
    """Return name, range, num_classes, error and interval (fractions) of the groups that have valid images."""
    if not measured or not len(data.train_counts):
        return []
    return [
        {
            'name': name,
            'range': GROUP_RANGES[name],
            'num_classes': int(members.sum()),
            'error': metric_error(name, measured.metrics[name]),
            'interval': measured.error_interval(name),
        }
        for name, members in shot_groups(np.asarray(data.train_counts)).items()
        if name in measured.metrics
    ]


def tau_rows(tau: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return title, before, after and others of the errors that tau.json knows on both sides.

    `others`: after, on images that tau was not chosen on, fold by fold; None where that was not measured.
    """
    parts = {part: (tau or {}).get(key) or {} for part, key in _TAU_PARTS.items()}
    return [
        {'title': title, **{part: _error_in(metrics, name) for part, metrics in parts.items()}}
        for name, title in ERRORS.items()
        if all(parts[part].get(name) is not None for part in ('before', 'after'))
    ]


def _error_in(metrics: dict[str, Any], name: str) -> float | None:
    return metric_error(name, metrics[name]) if metrics.get(name) is not None else None
