"""Reliability diagrams: whether answers given with a confidence of 80 % are right in 80 % of the cases."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from lib.metrics.per_class import binomial_interval
from lib.report.chart_style import PALETTE, legend, percent_axis
from lib.report.report_metrics import GROUPS


def draw_reliability(axes: Axes, calibration: dict[str, dict[str, Any]], names: tuple[str, ...]) -> None:
    """Draw accuracy against confidence of some entries of metrics_of's calibration; a dot's area says how many images.

    A single entry has the 95 % intervals of its bins, too.
    """
    axes.plot([0, 1], [0, 1], color=PALETTE['muted'], linewidth=1, linestyle=(0, (3, 2)), zorder=1)
    for name in names:
        bins = calibration[name]['bins']
        images = np.array([one['images'] for one in bins])
        x, y = (np.array([one[key] for one in bins]) for key in ('confidence', 'accuracy'))
        colour = PALETTE[name if name in GROUPS else 'valid']
        if len(names) == 1:
            low, high = binomial_interval(np.rint(y * images), images)
            axes.vlines(x, low, high, color=colour, linewidth=1, alpha=0.5)
        axes.plot(
            x, y, color=colour, linewidth=1.4, alpha=0.8, label=f'{name} ({100 * calibration[name]["ece"]:.1f} %)'
        )
        axes.scatter(
            x, y, s=10 + 110 * images / images.max(), color=colour, alpha=0.75, linewidths=0, zorder=3, clip_on=False
        )
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.25, 0.5, 0.75, 1])
        percent_axis(axis)
    axes.set_xlabel('confidence')
    axes.set_ylabel('of these answers right')
    legend(axes)
