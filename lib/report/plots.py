"""The charts of a run as PNG files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lib.report.chart_style import PALETTE, PANEL_SIZE, legend, new_panel, percent_axis, save_png, styled
from lib.report.curves import curve_panels, draw_panel
from lib.report.error_by_count import draw_error_by_count
from lib.report.tau_curve import METRICS, draw_tau


def plot_curves(
    path: str | os.PathLike, history: Sequence[dict[str, Any]], best_epoch: int | None = None
) -> Path | None:
    """Write the training curves as PNG; None, and no file, before there are two epochs."""
    panels = curve_panels(history)
    if not panels:
        return None
    with styled():
        num_columns = min(2, len(panels))
        num_rows = -(-len(panels) // num_columns)
        size = (PANEL_SIZE[0] * num_columns, PANEL_SIZE[1] * num_rows)
        figure = Figure(figsize=size, layout='constrained')
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(num_rows, num_columns, place + 1)
            draw_panel(axes, panel, best_epoch)
            axes.set_title(panel.title, pad=24)
        return save_png(path, figure)


def plot_error_by_count(
    path: str | os.PathLike, train_counts: np.ndarray, labels: np.ndarray, predicted: np.ndarray
) -> Path | None:
    """Write per-class error against training images as PNG; None, and no file, without images.

    `train_counts` is integer (num_classes,), `labels` and `predicted` (num_images,); -1 is unreadable.
    """
    if len(labels) == 0:
        return None
    with styled():
        figure, axes = new_panel()
        draw_error_by_count(axes, np.asarray(train_counts), np.asarray(labels), np.asarray(predicted))
        axes.set_title('Valid error by training images', pad=24)
        return save_png(path, figure)


def plot_tau(path: str | os.PathLike, tau: dict[str, Any]) -> Path:
    """Write the tau curve as PNG; `tau` is the content of tau.json."""
    with styled():
        figure, axes = new_panel()
        draw_tau(axes, tau)
        axes.set_title(f'Valid {METRICS.get(tau["metric"], tau["metric"])} for every tau', pad=24)
        return save_png(path, figure)


def plot_risk_coverage(path: str | os.PathLike, found: dict[str, Any]) -> Path:
    """Write the error among the answered images against their share as PNG.

    `found`: curve {coverage, error}, wanted_error, threshold, coverage and error at the threshold.
    """
    with styled():
        figure, axes = new_panel()
        coverage, error = (np.asarray(found['curve'][name], float) for name in ('coverage', 'error'))
        axes.step(coverage, error, where='post', color=PALETTE['valid'], linewidth=1.6)
        axes.axhline(
            found['wanted_error'], color=PALETTE['muted'], linestyle=(0, (4, 2)), linewidth=1.2, label='wanted'
        )
        if found['threshold'] is not None:
            label = f'threshold {found["threshold"]:.2f}'
            axes.plot([found['coverage']], [found['error']], 'o', color=PALETTE['few'], label=label, zorder=4)
        axes.set_xlim(0, 1.01)
        axes.set_ylim(bottom=0)
        axes.set_xlabel('share of the images that are answered')
        axes.set_ylabel('error among them')
        for axis in (axes.xaxis, axes.yaxis):
            percent_axis(axis)
        legend(axes)
        axes.set_title('Valid: error against coverage', pad=24)
        return save_png(path, figure)
