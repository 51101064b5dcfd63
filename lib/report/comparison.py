"""Comparison of several models on the same images: tables for the terminal, and a chart."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.errors import UserError, printable
from lib.metrics.class_report import detailed_metrics
from lib.metrics.paired import Comparison, compare
from lib.metrics.predictions import Predictions
from lib.report.chart_style import percent_axis, save_png, styled
from lib.report.page import PALETTE
from lib.report.report_metrics import metric_error

_COLUMNS = {'top1': 'top-1', 'many': 'many', 'medium': 'medium', 'few': 'few', 'ece': 'ECE'}
_NAME_WIDTH = 20  # makes the longest line 80 columns
_GROUPS = {'mean_class_error': 'all classes', 'many': 'many', 'medium': 'medium', 'few': 'few'}
# 6 colors and 7 markers: no common factor, so 42 models have different combinations.
_COLORS, _MARKERS = ('valid', 'few', 'many', 'medium', 'top1', 'train'), 'osD^vPX'


def comparison_lines(
    names: Sequence[str],
    predictions: Sequence[Predictions],
    train_counts: np.ndarray,
    metrics: Sequence[dict[str, Any]] | None = None,
) -> list[str]:
    """Return a table of the models and one of their differences from the first, in lines of at most 80 columns.

    Args:
        names: names of the models; long names are shortened in the middle.
        predictions: predictions of each model, for the same images in the same order.
        train_counts: (num_classes,) images per class in the original training set.
        metrics: the detailed_metrics of each model, if already computed.

    Raises:
        UserError: the models were evaluated on different images, or the images have no labels.
    """
    for name, other in zip(names, predictions, strict=True):
        if not np.array_equal(predictions[0].labels, other.labels):
            raise UserError(
                f'{name}: its labels differ from those of {names[0]} ({len(other):,} and {len(predictions[0]):,} '
                'images); compare models on the same split'
            )
    if metrics is None:
        metrics = [detailed_metrics(one, train_counts) for one in predictions]
    if not metrics[0]:
        raise UserError(f'{names[0]}: its images have no labels to compare predictions with; use a labeled split')
    short = _short_names(names)
    lines = _model_lines(short, metrics)
    if len(names) > 1:
        comparisons = [compare(predictions[0], other, len(train_counts)) for other in predictions[1:]]
        lines += ['', *_difference_lines(short, comparisons)]
    return lines


def _model_lines(names: list[str], metrics: Sequence[dict[str, Any]]) -> list[str]:
    width = max(map(len, names))
    lines = [f'{"%":<{width}}  {"mean class error":>20}' + ''.join(f'{title:>7}' for title in _COLUMNS.values())]
    for name, values in zip(names, metrics, strict=True):
        low, high = (100 * end for end in values['interval']['mean_class_error'])
        error = f'{100 * values["mean_class_error"]:.1f} [{low:.1f}, {high:.1f}]'
        cells = [f'{100 * values[key]:.1f}' if key in values else '-' for key in _COLUMNS]
        lines.append(f'{name:<{width}}  {error:>20}' + ''.join(f'{cell:>7}' for cell in cells))
    return lines


def _difference_lines(names: list[str], comparisons: Sequence[Comparison]) -> list[str]:
    width = max(map(len, names))
    lines = [
        f'difference from {names[0]} on the same {comparisons[0].images:,} images:',
        f'{"":<{width}}  {"mean class error, points":>24}  {"only right":>11} {"only wrong":>11}  McNemar',
    ]
    for name, comparison in zip(names[1:], comparisons, strict=True):
        change, low, high = (_points(value) for value in (comparison.difference, *comparison.interval))
        p_value = 'p<.0001' if comparison.p_value < 1e-4 else f'{comparison.p_value:.4f}'
        difference = f'{change} [{low}, {high}]'
        cells = f'{difference:>24}  {comparison.only_second:>11,} {comparison.only_first:>11,}  {p_value:>7}'
        lines.append(f'{name:<{width}}  {cells}')
    return lines


def _points(difference: float) -> str:
    """Format a difference of fractions in percentage points, with its sign unless it rounds to zero."""
    text = f'{100 * difference:+.1f}'
    return '0.0' if text[1:] == '0.0' else text


def _short_names(names: Sequence[str]) -> list[str]:
    names = [*map(printable, names)]
    short = [_shortened(name, _NAME_WIDTH) for name in names]
    if max(Counter(short).values()) == 1:
        return short
    return [f'{number}: {_shortened(name, _NAME_WIDTH - 4)}' for number, name in enumerate(names, start=1)]


def _shortened(name: str, width: int) -> str:
    """Replace the middle of a long name by dots: names of runs often differ at their ends."""
    if len(name) <= width:
        return name
    head = (width - 3) // 2
    return f'{name[:head]}...{name[len(name) - (width - 3 - head) :]}'


def draw_comparison(path: str | os.PathLike, names: Sequence[str], metrics: Sequence[dict[str, Any]]) -> Path | None:
    """Write the models' errors over all classes and per group, with intervals, as PNG.

    Args:
        names: names of the models.
        metrics: the detailed_metrics of each model.

    Returns:
        The path; None, and no file, if no model has a metric.
    """
    groups = [name for name in _GROUPS if any(name in values for values in metrics)]
    if not groups:
        return None
    num_columns = max(1, min(4, 64 // (max(map(len, names)) + 6)))
    with styled():
        height = 2.9 + 0.2 * (-(-len(names) // num_columns))
        figure = Figure(figsize=(6.4, height), layout='constrained')
        axes = figure.add_subplot()
        _draw_errors(axes, names, metrics, groups)
        figure.legend(
            loc='outside upper left', ncols=num_columns, labelcolor=PALETTE['ink'], handletextpad=0.4, columnspacing=1.4
        )
        axes.set_ylabel('mean class error, 95 % interval')
        return save_png(path, figure)


def _draw_errors(axes: Axes, names: Sequence[str], metrics: Sequence[dict[str, Any]], groups: list[str]) -> None:
    step = min(0.16, 0.7 / len(names))
    highest = 0.0
    for number, (name, values) in enumerate(zip(names, metrics, strict=True)):
        present = [group for group in groups if group in values]
        # Accuracies of the groups become errors, so their bounds change sides.
        ends = [sorted(metric_error(group, end) for end in values['interval'][group]) for group in present]
        errors = np.array([metric_error(group, values[group]) for group in present])
        lows, highs = np.array(ends).reshape(-1, 2).T
        highest = max(highest, float(highs.max(initial=0.0)))
        x = np.array([groups.index(group) for group in present]) + step * (number - (len(names) - 1) / 2)
        axes.errorbar(
            x,
            errors,
            [np.maximum(errors - lows, 0), np.maximum(highs - errors, 0)],
            fmt=_MARKERS[number % len(_MARKERS)],
            color=PALETTE[_COLORS[number % len(_COLORS)]],
            markersize=4.6,
            elinewidth=1.5,
            capsize=0,
            label=name,
        )
    if groups[0] == 'mean_class_error' and len(groups) > 1:
        axes.axvline(0.5, color=PALETTE['line'], linewidth=0.8)
    axes.set_xticks(range(len(groups)), [_GROUPS[group] for group in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylim(0, min(1.02, 1.08 * highest) or 1.0)
    percent_axis(axes.yaxis)
