"""Charts of a run: training curves, mistakes, error against tau and against coverage, for the page and as PNG."""

import contextlib
import io
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from PIL import Image

from lib.metrics.predictions import Predictions
from lib.report.chart_style import PANEL_SIZE, legend, new_panel, percent_axis, save_png, styled
from lib.report.class_charts import draw_error_by_count
from lib.report.galleries import thumbnail
from lib.report.page import PALETTE
from lib.report.report_metrics import metric_error


@dataclass(frozen=True)
class Series:
    """One line of a chart: finite values and their epochs, both (num_epochs,)."""

    label: str
    color: str
    epochs: np.ndarray
    values: np.ndarray
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart of training curves."""

    title: str
    series: tuple[Series, ...]
    percent: bool


# Title -> its lines as (label, color, split, key of metrics.jsonl).
_PANELS = {
    'Loss': (('train', 'train', 'train', 'loss'), ('valid', 'valid', 'valid', 'loss')),
    'Error': (
        ('train top-1', 'train', 'train', 'top1'),
        ('valid top-1', 'top1', 'valid', 'top1'),
        ('valid mean class', 'valid', 'valid', 'mean_class_error'),
    ),
    'Valid error by class size': tuple((name, name, 'valid', name) for name in ('many', 'medium', 'few')),
    'Learning rate': (('learning rate', 'valid', 'train', 'lr'),),
}
_ACCURACIES = ('top1', 'many', 'medium', 'few')  # drawn as errors


def curve_panels(history: Sequence[dict[str, Any]]) -> list[Panel]:
    """Return the training curves of the objects of metrics.jsonl; lines with fewer than 2 points are left out.

    If an epoch has several objects of one split (after a resumed run), the last one is used. Accuracies are converted
    to errors.
    """
    latest = {(entry.get('split'), entry.get('epoch')): entry for entry in history}
    panels = []
    for title, lines in _PANELS.items():
        series = tuple(one for line in lines if len((one := _series(latest, *line)).epochs) > 1)
        if series:
            panels.append(Panel(title, series, percent='error' in title.lower()))
    return panels


def _series(latest: dict[tuple, dict], label: str, color: str, split: str, key: str) -> Series:
    points = sorted(
        (epoch, 1 - entry[key] if key in _ACCURACIES else entry[key])
        for (entry_split, epoch), entry in latest.items()
        if entry_split == split and epoch is not None and _finite(entry.get(key))
    )
    epochs, values = np.array([p[0] for p in points]), np.array([p[1] for p in points], float)
    return Series(label, PALETTE[color], epochs, values, dashed=split == 'train' and key != 'lr')


def draw_panel(axes: Axes, panel: Panel, best_epoch: int | None = None) -> None:
    """Draw training curves with a dot at `best_epoch`."""
    for series in panel.series:
        axes.plot(
            series.epochs,
            series.values,
            color=series.color,
            label=series.label,
            linestyle=(0, (3, 1.6)) if series.dashed else '-',
            linewidth=1.6 if series.dashed else 2.0,
        )
        at_best = series.values[series.epochs == best_epoch]
        if best_epoch is not None and len(at_best) and not series.dashed and panel.title != 'Learning rate':
            axes.plot(best_epoch, at_best[0], 'o', markersize=5.5, color=series.color)
    if len(panel.series) > 1:
        legend(axes)
    axes.set_xlabel('epoch')
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.margins(x=0.02)
    lowest = min(series.values.min() for series in panel.series)
    if panel.title == 'Learning rate' and 0 < 20 * lowest < panel.series[0].values.max():
        axes.set_yscale('log')
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if panel.percent:
        percent_axis(axes.yaxis)
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:.6g}'))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


MAX_STEPS = 1500  # a longer tau curve is sampled: the chart has fewer pixels
METRICS = {'mean_class_error': 'mean class error', 'top1': 'top-1 error'}


def draw_tau(axes: Axes, tau: dict[str, Any]) -> None:
    """Draw the curve of tau.json with the original checkpoint, the chosen tau and the range of one standard error.

    `tau['curve']` holds `tau`, ascending (num_steps,), and `value`, the metric between these (num_steps + 1,).
    """
    metric = tau['metric']
    taus = np.asarray(tau['curve']['tau'], float)
    values = np.asarray(tau['curve']['value'], float)
    errors = values if metric.endswith('error') else 1 - values
    end = float(tau.get('max_tau') or (taus.max() * 1.05 if len(taus) else 1.0))
    if tau.get('stretch') is not None and tau.get('chosen') is not None:
        axes.axvspan(*tau['stretch'], color=PALETTE['valid'], alpha=0.12, linewidth=0, label='within 1 s.e.')
    inner = taus[(taus > 0) & (taus < end)]
    edges = inner if len(inner) <= MAX_STEPS else np.linspace(0, end, MAX_STEPS + 1)[1:-1]
    edges = np.concatenate([[0.0], edges, [end]])
    steps = errors[np.searchsorted(taus, (edges[:-1] + edges[1:]) / 2, side='right')]
    axes.step(edges, np.append(steps, steps[-1]), where='post', color=PALETTE['valid'], linewidth=1.6, label='tau')
    before = tau.get('before', {}).get(metric)
    if before is not None:
        height = metric_error(metric, before)
        axes.axhline(height, color=PALETTE['ink'], linewidth=1.2, linestyle=(0, (4, 2)), label='before')
    if tau.get('chosen') is not None:
        chosen = float(tau['chosen'])
        height = errors[np.searchsorted(taus, chosen, side='right')]
        style: dict[str, Any] = {'color': PALETTE['few'], 'markersize': 7, 'markeredgewidth': 0}
        axes.plot([chosen], [height], 'o', label=f'chosen {chosen:.2f}', zorder=4, **style)
    axes.set_xlim(0, end)
    axes.margins(y=0.08)
    axes.set_xlabel('tau')
    axes.set_ylabel(METRICS.get(metric, metric))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    percent_axis(axes.yaxis)
    legend(axes)


def plot_curves(
    path: str | os.PathLike, history: Sequence[dict[str, Any]], best_epoch: int | None = None
) -> Path | None:
    """Write the training curves as PNG and return the path; None, and no file, with fewer than 2 epochs."""
    panels = curve_panels(history)
    if not panels:
        return None
    with styled():
        num_columns = min(2, len(panels))
        num_rows = -(-len(panels) // num_columns)
        size = (PANEL_SIZE[0] * num_columns, PANEL_SIZE[1] * num_rows)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12))
        for number, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(num_rows, num_columns, number)
            draw_panel(axes, panel, best_epoch)
            axes.set_title(panel.title, pad=24)
        return save_png(path, figure)


def plot_error_by_count(
    path: str | os.PathLike, train_counts: np.ndarray, labels: np.ndarray, predicted: np.ndarray
) -> Path | None:
    """Write per-class error against training images as PNG and return the path; None, and no file, without images.

    Args:
        train_counts: (num_classes,) integer.
        labels, predicted: (num_images,) integer; -1 in `predicted` is an unreadable image.
    """
    if len(labels) == 0:
        return None
    with styled():
        figure, axes = new_panel()
        draw_error_by_count(axes, np.asarray(train_counts), np.asarray(labels), np.asarray(predicted))
        axes.set_title('Valid error by training images', pad=24)
        return save_png(path, figure)


NUM_MISTAKES, _MISTAKE_COLUMNS = 12, 4
_MAX_NAME = 26  # characters of a class name above a thumbnail


def mistakes_png(
    predictions: Predictions, class_names: Sequence[str], open_image: Callable[[int], Image.Image]
) -> bytes | None:
    """Return a PNG with the misclassified images of the highest probability, each with its true and predicted class.

    At most NUM_MISTAKES are shown. None if there are no mistakes, or none can be opened.

    Args:
        predictions: predictions of images whose class is known or -1.
        class_names: (num_classes,)
        open_image: row of the predictions -> image; a row that raises is left out.
    """
    wrong = np.flatnonzero((predictions.labels >= 0) & (predictions.predicted >= 0) & ~predictions.correct)
    rows = wrong[np.argsort(-predictions.confidence[wrong], kind='stable')]
    shown = list(itertools.islice(_thumbnails(rows.tolist(), open_image), NUM_MISTAKES))
    if not shown:
        return None
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Glyph')  # a character that the font lacks becomes a box
        num_rows = -(-len(shown) // _MISTAKE_COLUMNS)
        figure = Figure(figsize=(2.1 * _MISTAKE_COLUMNS, 2.4 * num_rows), layout='constrained')
        for number, (row, pixels) in enumerate(shown, start=1):
            axes = figure.add_subplot(num_rows, _MISTAKE_COLUMNS, number)
            axes.imshow(pixels)
            axes.set_axis_off()
            label, predicted = (
                _short(class_names[index]) for index in (predictions.labels[row], predictions.predicted[row])
            )
            title = f'true: {label}\npredicted: {predicted}\nprobability {predictions.confidence[row]:.1%}'
            axes.set_title(title, fontsize=7.5, fontweight='normal')
        buffer = io.BytesIO()
        figure.savefig(buffer, format='png', dpi=100, facecolor='white', metadata={'Software': None})
    return buffer.getvalue()


def _thumbnails(rows: Sequence[int], open_image: Callable[[int], Image.Image]) -> Iterator[tuple[int, np.ndarray]]:
    for row in rows:
        with contextlib.suppress(Exception):  # any error of the reader: a missing thumbnail must not cost the run
            yield row, np.asarray(thumbnail(open_image(row)))


def _short(name: str) -> str:
    """Return a class name in one line of at most _MAX_NAME characters."""
    line = ' '.join(name.split())
    return line if len(line) <= _MAX_NAME else f'{line[: _MAX_NAME - 3]}...'


def plot_tau(path: str | os.PathLike, tau: dict[str, Any]) -> Path:
    """Write the tau curve as PNG; `tau` is the content of tau.json."""
    with styled():
        figure, axes = new_panel()
        draw_tau(axes, tau)
        axes.set_title(f'Valid {METRICS.get(tau["metric"], tau["metric"])} against tau', pad=24)
        return save_png(path, figure)


def plot_risk_coverage(path: str | os.PathLike, risk: dict[str, Any]) -> Path:
    """Write the risk-coverage curve as PNG: error among the accepted images against their fraction.

    `risk`: curve {coverage, error}, wanted_error, threshold, and coverage and error at the threshold.
    """
    with styled():
        figure, axes = new_panel()
        coverage, error = (np.asarray(risk['curve'][name], float) for name in ('coverage', 'error'))
        axes.step(coverage, error, where='post', color=PALETTE['valid'], linewidth=1.6)
        axes.axhline(risk['wanted_error'], color=PALETTE['muted'], linestyle=(0, (4, 2)), linewidth=1.2, label='target')
        if risk['threshold'] is not None:
            label = f'threshold {risk["threshold"]:.2f}'
            axes.plot([risk['coverage']], [risk['error']], 'o', color=PALETTE['few'], label=label, zorder=4)
        axes.set_xlim(0, 1.01)
        axes.set_ylim(bottom=0)
        axes.set_xlabel('coverage')
        axes.set_ylabel('error among covered images')
        for axis in (axes.xaxis, axes.yaxis):
            percent_axis(axis)
        legend(axes)
        axes.set_title('Valid: error against coverage', pad=24)
        return save_png(path, figure)
