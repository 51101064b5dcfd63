"""How many images the classes have: the tail in figures, and its histogram."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from lib.metrics.accuracy import FEW_BELOW, MANY_ABOVE, shot_groups
from lib.report.chart_style import PALETTE, legend
from lib.report.data import ReportData
from lib.report.report_metrics import Measured

_BINS_A_DECADE = 10


def data_statistics(data: ReportData, measured: Measured | None) -> dict[str, Any]:
    """Return counts of images and classes as what JSON can hold; empty without training counts.

    Returns:
        classes, train_images, valid_images; of the classes with training images: largest, median, smallest and
        imbalance (largest over smallest); classes_without_training, classes_without_valid; head_share: what share of
        the training images the largest tenth of the classes has.
    """
    counts = np.sort(np.asarray(data.train_counts, np.int64))[::-1]
    if not len(counts):
        return {}
    found: dict[str, Any] = {'classes': len(counts), 'train_images': int(counts.sum())}
    found['valid_images'] = len(measured.answers) if measured else 0
    seen = counts[counts > 0]
    if len(seen):
        found |= {
            'largest': int(seen[0]),
            'median': float(np.median(seen)),
            'smallest': int(seen[-1]),
            'imbalance': float(seen[0] / seen[-1]),
            'head_share': float(seen[: -(-len(counts) // 10)].sum() / seen.sum()),
        }
    found['classes_without_training'] = len(counts) - len(seen)
    if measured:
        found['classes_without_valid'] = int((measured.table.images == 0).sum())
    return found


def draw_class_sizes(axes: Axes, train_counts: np.ndarray) -> None:
    """Draw how many classes have how many training images, (num_classes,) of which one is above 0."""
    counts = np.asarray(train_counts)
    counts = counts[counts > 0]
    edges = _edges(int(counts.min()), int(counts.max()))
    heights = np.histogram(counts, edges)[0]
    # Colours change where the groups do, since edges lie there.
    for name, members in shot_groups(np.ceil(edges[:-1])).items():
        if heights[members].any():
            widths = np.diff(edges)[members]
            style = {'color': PALETTE[name], 'edgecolor': PALETTE['card'], 'linewidth': 0.6, 'align': 'edge'}
            axes.bar(edges[:-1][members], heights[members], widths, label=name, **style)
    axes.set_xscale('log')
    axes.set_xlim(edges[0] / 1.05, edges[-1] * 1.05)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if edges[-1] / edges[0] < 2000 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.0f}'))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{y:,.0f}'))
    axes.set_xlabel('training images of the class')
    axes.set_ylabel('classes')
    legend(axes)


def _edges(low: int, high: int) -> np.ndarray:
    """Return edges between whole numbers, even on a logarithmic axis where these are dense, with the groups' among
    them.
    """
    num_bins = max(1, round(_BINS_A_DECADE * np.log10((high + 1) / low)))
    inner = np.round(np.geomspace(low, high + 1, num_bins + 1))
    groups = [edge for edge in (FEW_BELOW, MANY_ABOVE + 1) if low < edge <= high]
    # An edge next to a group's would leave a bin too narrow to see.
    apart = [edge for edge in inner[1:-1] if all(abs(np.log(edge / group)) > 0.08 for group in groups)]
    return np.unique([low, *apart, *groups, high + 1]) - 0.5
