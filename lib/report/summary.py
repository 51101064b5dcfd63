"""The figures of a report, as text and table rows."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.evaluation.accuracy import FEW_BELOW, MANY_ABOVE, shot_groups
from lib.report.data import ReportData
from lib.report.per_class import SampledError, sampled_error
from lib.report.tau_curve import metric_error

_METRICS = {
    'mean_class_error': 'Mean class error',
    'top1': 'Top-1 error',
    'top5': 'Top-5 error',
    'many': 'Error, many',
    'medium': 'Error, medium',
    'few': 'Error, few',
}


@dataclass(frozen=True)
class Card:
    """A headline figure of the best epoch, with those of the last one and of the re-balanced model."""

    title: str
    value: str
    standard_error: str
    last: str
    rebalanced: str


def percent(value: float) -> str:
    """Format a fraction as a percentage with one decimal; a dash for what is not a finite number."""
    return f'{100 * value:.1f}\u202f%' if math.isfinite(value) else '–'


def points(difference: float) -> str:
    """Format a difference of fractions in percentage points, with its sign."""
    text = f'{100 * difference:+.1f}'
    return '0.0' if text[1:] == '0.0' else text.replace('-', '−')


def thousands(value: float) -> str:
    """Format a count with thin spaces between thousands."""
    return f'{value:,.0f}'.replace(',', '\u202f')


def dataset_facts(data: ReportData, labels: np.ndarray, predicted: np.ndarray) -> list[str]:
    """Say in a few words each how large the run was."""
    facts = []
    counts = np.asarray(data.train_counts)
    if len(counts):
        facts += [f'{thousands(len(counts))} classes', f'{thousands(counts.sum())} training images']
        seen = counts[counts > 0]
        if len(seen):
            facts.append(f'{thousands(seen.min())} to {thousands(seen.max())} of a class')
        if len(seen) < len(counts):
            facts.append(f'{thousands(len(counts) - len(seen))} classes without any')
    if len(labels):
        facts.append(f'{thousands(len(labels))} valid images')
    unreadable = int((predicted < 0).sum())
    if unreadable:
        facts.append(f'{thousands(unreadable)} unreadable, counted as wrong')
    rates = [e['images_per_second'] for e in data.history if e.get('split') == 'train' and e.get('images_per_second')]
    if rates:
        facts.append(f'{thousands(np.median(rates))} training images a second')
    return facts


def summary_cards(data: ReportData, labels: np.ndarray, predicted: np.ndarray) -> list[Card]:
    """Return the errors of the best epoch (else the last) with their standard errors from the predictions."""
    best, last = data.summary.get('best') or {}, data.summary.get('last') or {}
    rebalanced = data.tau and data.tau.get('chosen') is not None
    after = (data.tau.get('after') or {}) if rebalanced else {}
    sampled = _sampled(data, labels, predicted)

    def shown(metrics: dict[str, Any], name: str) -> str:
        return percent(metric_error(name, metrics[name])) if metrics.get(name) is not None else ''

    cards = []
    for name, title in _METRICS.items():
        value = shown(best or last, name)
        if value:
            error = sampled.get(name)
            spread = percent(error.standard_error) if error else ''
            cards.append(Card(title, value, spread, shown(last, name) if best else '', shown(after, name)))
    return cards


def _sampled(data: ReportData, labels: np.ndarray, predicted: np.ndarray) -> dict[str, SampledError]:
    num_classes = len(data.train_counts)
    if not num_classes:
        return {}
    figures = {name: sampled_error(labels, predicted, num_classes, name) for name in ('mean_class_error', 'top1')}
    for name, members in shot_groups(np.asarray(data.train_counts)).items():
        rows = members[labels]
        figures[name] = sampled_error(labels[rows], predicted[rows], num_classes)
    return {name: figure for name, figure in figures.items() if figure}


def group_rows(data: ReportData, labels: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """Return name, range, num_classes and error of the groups that have valid images."""
    figures = _sampled(data, labels, predicted)
    ranges = {
        'many': f'over {MANY_ABOVE}',
        'medium': f'{FEW_BELOW} to {MANY_ABOVE}',
        'few': f'under {FEW_BELOW}',
    }
    return [
        {'name': name, 'range': ranges[name], 'num_classes': int(members.sum()), 'error': figures[name]}
        for name, members in shot_groups(np.asarray(data.train_counts)).items()
        if name in figures
    ]


def tau_rows(tau: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return title, before and after of the errors that tau.json knows on both sides."""
    before, after = (tau or {}).get('before') or {}, (tau or {}).get('after') or {}
    return [
        {'title': title, 'before': metric_error(name, before[name]), 'after': metric_error(name, after[name])}
        for name, title in _METRICS.items()
        if before.get(name) is not None and after.get(name) is not None
    ]
