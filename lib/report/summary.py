"""The figures of a report, as text and table rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.evaluation.accuracy import FEW_BELOW, MANY_ABOVE, shot_groups
from lib.report.data import ReportData
from lib.report.measured import ERRORS, Measured
from lib.report.tau_curve import metric_error

GROUP_RANGES = {'many': f'over {MANY_ABOVE}', 'medium': f'{FEW_BELOW} to {MANY_ABOVE}', 'few': f'under {FEW_BELOW}'}


@dataclass(frozen=True)
class Card:
    """A headline figure with its interval, with those of the last epoch and of the re-balanced model."""

    title: str
    value: str
    interval: str
    last: str
    rebalanced: str


def percent(value: float) -> str:
    """Format a fraction as a percentage with one decimal; a dash for what is not a finite number."""
    return f'{100 * value:.1f}\u202f%' if math.isfinite(value) else '–'


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


def dataset_facts(data: ReportData, measured: Measured | None) -> list[str]:
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


def summary_cards(data: ReportData, measured: Measured | None) -> list[Card]:
    """Return the errors of the model (those of the best epoch where it was not measured) with their intervals."""
    best, last = data.summary.get('best') or {}, data.summary.get('last') or {}
    rebalanced = data.tau and data.tau.get('chosen') is not None
    after = (data.tau.get('after') or {}) if rebalanced else {}
    metrics = {**(best or last), **(measured.metrics if measured else {})}

    def shown(metrics: dict[str, Any], name: str) -> str:
        return percent(metric_error(name, metrics[name])) if metrics.get(name) is not None else ''

    cards = []
    for name, title in ERRORS.items():
        value = shown(metrics, name)
        if value:
            interval = measured.error_interval(name) if measured else None
            spread = between(interval) if interval else ''
            cards.append(Card(title, value, spread, shown(last, name) if best else '', shown(after, name)))
    return cards


def group_rows(data: ReportData, measured: Measured | None) -> list[dict[str, Any]]:
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
    """Return title, before and after of the errors that tau.json knows on both sides."""
    before, after = (tau or {}).get('before') or {}, (tau or {}).get('after') or {}
    return [
        {'title': title, 'before': metric_error(name, before[name]), 'after': metric_error(name, after[name])}
        for name, title in ERRORS.items()
        if before.get(name) is not None and after.get(name) is not None
    ]
