"""A grid's table as a picture: a bar a method, its spread over seeds, and a mark where a paper says it lies."""

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lib.experiments.table import Row, headline
from lib.report.chart_style import PALETTE, legend, save_png, styled

_LABELS = {
    'test_mean_class_error': 'mean class error on the test split, %',
    'last_mean_class_error': 'mean class error on the valid split after the last epoch, %',
}
_BAR_INCHES, _FRAME_INCHES, _WIDTH_INCHES = 0.27, 1.15, 7.4


def plot_table(path: str | os.PathLike, rows: Sequence[Row], title: str) -> Path | None:
    """Write the picture as PNG, the lowest error on top; None, and no file, without a figure to show."""
    figure_name = headline(rows)
    shown = sorted((row for row in rows if figure_name in row.figures), key=lambda row: row.figures[figure_name].mean)
    if not shown:
        return None
    with styled():
        figure = Figure((_WIDTH_INCHES, _FRAME_INCHES + _BAR_INCHES * len(shown)), layout='constrained')
        axes = figure.add_subplot()
        places = range(len(shown))
        spreads = [row.figures[figure_name] for row in shown]
        means = [100 * spread.mean for spread in spreads]
        deviations = [100 * (spread.deviation or 0) for spread in spreads]
        axes.barh(places, means, height=0.62, color=PALETTE['valid'], alpha=0.55, label='measured')
        if any(deviations):
            axes.errorbar(
                means, places, xerr=deviations, fmt='none', ecolor=PALETTE['ink'], elinewidth=1.1, capsize=2.5,
                zorder=5, label='standard deviation over seeds',
            )  # fmt: skip
        _mark_published(axes, shown)
        ends = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
        ends += [float(row.published.error) for row in shown if row.published]
        axes.set_xlim(0, 1.04 * max(*ends, 1))
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_yticks(places, [row.method.title for row in shown])
        axes.tick_params(axis='y', labelcolor=PALETTE['ink'])
        axes.grid(axis='y', visible=False)
        axes.grid(axis='x', visible=True)
        # In a column of their own the numbers cover neither bars nor marks.
        for place, spread in zip(places, spreads, strict=True):
            axes.text(
                1.015,
                place,
                spread.percent(),
                transform=axes.get_yaxis_transform(),
                va='center',
                ha='left',
                fontsize=8.5,
            )
        axes.set_xlabel(_LABELS[figure_name])
        axes.set_title(title, pad=24)
        legend(axes)
        return save_png(path, figure)


def _mark_published(axes, shown: Sequence[Row]) -> None:
    marks = [(float(row.published.error), place) for place, row in enumerate(shown) if row.published]
    if marks:
        errors, places = zip(*marks, strict=True)
        # A line across the bar, since a dot would hide the deviation.
        low, high = [place - 0.4 for place in places], [place + 0.4 for place in places]
        axes.vlines(errors, low, high, color=PALETTE['few'], linewidth=2.2, zorder=4, label='published')
