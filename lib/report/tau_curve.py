"""The tau curve: error of the re-balanced classifier for every tau."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lib.report.chart_style import PALETTE, legend, percent_axis

MAX_STEPS = 1500  # more steps than the chart has pixels are sampled
METRICS = {'mean_class_error': 'mean class error', 'top1': 'top-1 error'}


def metric_error(metric: str, value: float) -> float:
    """Return the error of a metric's value: 1 - value for accuracies, value for errors."""
    return value if metric.endswith('error') else 1 - value


def draw_tau(axes: Axes, tau: dict[str, Any]) -> None:
    """Draw the curve of tau.json with the untouched checkpoint, the chosen tau and its stretch.

    `tau['curve']` holds `tau`, ascending (num_steps,), and `value`, the metric between them (num_steps + 1,).
    """
    metric = tau['metric']
    taus = np.asarray(tau['curve']['tau'], float)
    errors = metric_error(metric, np.asarray(tau['curve']['value'], float))
    end = float(tau.get('max_tau') or (taus.max() * 1.05 if len(taus) else 1.0))
    if tau.get('stretch') is not None and tau.get('chosen') is not None:
        axes.axvspan(*tau['stretch'], color=PALETTE['valid'], alpha=0.12, linewidth=0, label='within one s.e.')
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
        place = float(tau['chosen'])
        height = errors[np.searchsorted(taus, place, side='right')]
        style = {'color': PALETTE['few'], 'markersize': 7, 'markeredgewidth': 0}
        axes.plot([place], [height], 'o', label=f'chosen {place:.2f}', zorder=4, **style)
    axes.set_xlim(0, end)
    axes.margins(y=0.08)
    axes.set_xlabel('tau')
    axes.set_ylabel(METRICS.get(metric, metric))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    percent_axis(axes.yaxis)
    legend(axes)
