"""Training curves: loss, error and learning rate over the epochs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from lib.report.chart_style import PALETTE, legend, percent_axis


@dataclass(frozen=True)
class Series:
    """One line: values over epochs, both (num_epochs,), not finite ones left out."""

    label: str
    colour: str
    epochs: np.ndarray
    values: np.ndarray
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart of training curves."""

    title: str
    series: tuple[Series, ...]
    percent: bool


# Title -> what (label, colour, split, key) its lines show.
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
    """Turn the objects of metrics.jsonl into charts; a line of fewer than two points is left out.

    The last object of an epoch and split counts, as after a resumed epoch. Accuracies become errors.
    """
    latest = {(entry.get('split'), entry.get('epoch')): entry for entry in history}
    panels = []
    for title, lines in _PANELS.items():
        series = tuple(one for line in lines if len((one := _series(latest, *line)).epochs) > 1)
        if series:
            panels.append(Panel(title, series, percent='error' in title.lower()))
    return panels


def _series(latest: dict[tuple, dict], label: str, colour: str, split: str, key: str) -> Series:
    points = sorted(
        (epoch, 1 - entry[key] if key in _ACCURACIES else entry[key])
        for (its_split, epoch), entry in latest.items()
        if its_split == split and epoch is not None and _finite(entry.get(key))
    )
    epochs, values = np.array([p[0] for p in points]), np.array([p[1] for p in points], float)
    return Series(label, PALETTE[colour], epochs, values, dashed=split == 'train' and key != 'lr')


def draw_panel(axes: Axes, panel: Panel, best_epoch: int | None = None) -> None:
    """Draw training curves; `best_epoch` is marked on them."""
    for series in panel.series:
        axes.plot(
            series.epochs,
            series.values,
            color=series.colour,
            label=series.label,
            linestyle=(0, (3, 1.6)) if series.dashed else '-',
            linewidth=1.6 if series.dashed else 2.0,
        )
        at_best = series.values[series.epochs == best_epoch]
        if len(at_best) and not series.dashed and panel.title != 'Learning rate':
            axes.plot(best_epoch, at_best[0], 'o', markersize=5.5, color=series.colour)
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
