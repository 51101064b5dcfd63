"""Charts over classes: error against training images, histogram of class sizes, and reliability diagrams."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from lib.metrics.accuracy import FEW_BELOW, MANY_ABOVE, shot_groups
from lib.metrics.intervals import accuracy_interval, binomial_interval, class_errors
from lib.report.chart_style import legend, percent_axis
from lib.report.page import PALETTE
from lib.report.report_metrics import GROUPS, ReportData, ReportMetrics

MAX_SPOTS = 2000  # dots in the chart; more dots only make the page larger
EMPTY_CLASS = 0.5  # position of classes without training images on the logarithmic axis


def draw_error_by_count(
    axes: Axes, train_counts: np.ndarray, labels: np.ndarray, predicted: np.ndarray
) -> tuple[int, int]:
    """Draw the error of each class against its number of training images, with binned means and group boundaries.

    Args:
        train_counts: (num_classes,) integer.
        labels, predicted: (num_images,) integer, not empty.

    Returns:
        The number of classes drawn, and the number of dots that they are merged into, at most MAX_SPOTS.
    """
    num_images, num_wrong = class_errors(labels, predicted, len(train_counts))
    present = num_images > 0
    counts = np.maximum(np.asarray(train_counts, float), EMPTY_CLASS)[present]
    where, errors, weights = _spots(counts, num_wrong[present] / num_images[present])
    levels = np.minimum(np.log2(weights).astype(int), 6)
    for name, members in shot_groups(where).items():
        for level in np.unique(levels[members]):
            chosen = members & (levels == level)
            _dots(axes, where[chosen], errors[chosen], level, PALETTE[name])
    _binned_means(axes, counts, num_images[present], num_wrong[present])
    axes.set_xscale('log')
    low, high = counts.min() / 1.35, counts.max() * 1.35
    axes.set_xlim(low, high)
    axes.set_ylim(-0.04, 1.1)
    _group_boundaries(axes, low, high)
    subs = (1, 2, 5) if high / low < 2000 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    if counts.min() == EMPTY_CLASS:
        axes.set_xticks([EMPTY_CLASS, *(t for t in axes.get_xticks() if 1 <= t <= high)])
        axes.set_xlim(low, high)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: '0' if x == EMPTY_CLASS else f'{x:,.0f}'))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    percent_axis(axes.yaxis)
    axes.set_xlabel('training images of the class')
    axes.set_ylabel('error of the class')
    legend(axes)
    return len(counts), len(where)


def _spots(counts: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge classes at the same position into one dot, on a coarse grid if there are more than MAX_SPOTS positions.

    Returns counts, errors and number of classes, each (num_spots,), num_spots <= MAX_SPOTS.
    """
    positions = np.stack([counts, errors], 1)
    spots, weights = np.unique(positions, axis=0, return_counts=True)
    if len(spots) <= MAX_SPOTS:
        return spots[:, 0], spots[:, 1], weights
    columns, rows = 79, 25  # (79 cells) x (24 + 1 rows) stay below MAX_SPOTS
    logs = np.log(counts)
    span = max(logs.max() - logs.min(), 1e-9)
    column = np.minimum(((logs - logs.min()) / span * columns).astype(int), columns - 1)
    cells = column * rows + np.rint(errors * (rows - 1)).astype(int)
    weights = np.bincount(cells)
    used = weights > 0
    mean = [np.bincount(cells, values)[used] / weights[used] for values in (logs, errors)]
    return np.exp(mean[0]), mean[1], weights[used]


def _dots(axes: Axes, x: np.ndarray, y: np.ndarray, level: int, color: str) -> None:
    # One path of very short strokes with round ends needs a fifth of the bytes of one element per dot. The PNG
    # renderer drops strokes of length 0, and snapping to pixels would make these 0.
    vertices = np.repeat(np.stack([x, y], 1), 2, axis=0)
    vertices[1::2, 0] *= 1.001
    outline = Outline(vertices, np.tile([Outline.MOVETO, Outline.LINETO], len(x)))
    style = {'edgecolor': color, 'capstyle': 'round', 'clip_on': False, 'fill': False, 'snap': False}
    axes.add_patch(PathPatch(outline, linewidth=3.8 + 0.6 * level, alpha=0.45 + 0.05 * level, **style))


def _binned_means(axes: Axes, counts: np.ndarray, num_images: np.ndarray, num_wrong: np.ndarray) -> None:
    num_bins = int(np.clip(round(math.sqrt(len(counts))), 3, 12))
    edges = np.geomspace(counts.min(), counts.max(), num_bins + 1)[1:-1]
    bins = np.searchsorted(edges, counts, side='right')  # (num_classes_present,)
    middles, means, ends = [], [], []
    for number in np.unique(bins):
        members = bins == number
        images, wrong = num_images[members], num_wrong[members]
        middles.append(np.exp(np.log(counts[members]).mean()))
        means.append((wrong / images).mean())
        ends.append(accuracy_interval(wrong, images))  # of wrong images, so it is the interval of the error
    low, high = np.array(ends).T
    reach = np.maximum([means - low, high - means], 0)
    axes.plot(middles, means, color=PALETTE['card'], linewidth=4.5, zorder=3)  # separates the line from the dots
    style: dict[str, Any] = {'color': PALETTE['ink'], 'linewidth': 1.6, 'elinewidth': 1.2, 'capsize': 0, 'marker': 'o'}
    axes.errorbar(middles, means, reach, markersize=3.6, label='mean, 95 % interval', zorder=3, **style)


def _group_boundaries(axes: Axes, low: float, high: float) -> None:
    edges = [low, FEW_BELOW - 0.5, MANY_ABOVE + 0.5, high]
    for name, left, right in zip(('few', 'medium', 'many'), edges, edges[1:], strict=False):
        left, right = max(left, low), min(right, high)
        if right <= left:
            continue
        if left > low:
            axes.axvline(left, color=PALETTE['muted'], linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        if math.log(right / left) > 0.1 * math.log(high / low):
            style: dict[str, Any] = {'ha': 'center', 'va': 'center', 'fontweight': 'bold', 'fontsize': 8.5}
            axes.text(math.sqrt(left * right), 1.07, name, color=PALETTE[name], **style)


_BINS_PER_DECADE = 10


def data_statistics(data: ReportData, metrics: ReportMetrics | None) -> dict[str, Any]:
    """Return numbers of images and classes, ready for JSON; empty without training counts.

    Returns:
        classes, train_images, valid_images; of the classes with training images: largest, median, smallest and
        imbalance (largest / smallest); classes_without_training, classes_without_valid; head_share: fraction of the
        training images that belong to the largest 10 % of the classes.
    """
    counts = np.sort(np.asarray(data.train_counts, np.int64))[::-1]
    if not len(counts):
        return {}
    statistics: dict[str, Any] = {'classes': len(counts), 'train_images': int(counts.sum())}
    statistics['valid_images'] = len(metrics.predictions) if metrics else 0
    nonempty = counts[counts > 0]
    if len(nonempty):
        statistics |= {
            'largest': int(nonempty[0]),
            'median': float(np.median(nonempty)),
            'smallest': int(nonempty[-1]),
            'imbalance': float(nonempty[0] / nonempty[-1]),
            'head_share': float(nonempty[: -(-len(counts) // 10)].sum() / nonempty.sum()),
        }
    statistics['classes_without_training'] = len(counts) - len(nonempty)
    if metrics:
        statistics['classes_without_valid'] = int((metrics.table.images == 0).sum())
    return statistics


def draw_class_sizes(axes: Axes, train_counts: np.ndarray) -> None:
    """Draw a histogram of the training images per class, (num_classes,), at least one of them above 0."""
    counts = np.asarray(train_counts)
    counts = counts[counts > 0]
    edges = _edges(int(counts.min()), int(counts.max()))
    heights = np.histogram(counts, edges)[0]
    # Each bin belongs to one group, because the groups' boundaries are edges.
    for name, members in shot_groups(np.ceil(edges[:-1])).items():
        if heights[members].any():
            widths = np.diff(edges)[members]
            style: dict[str, Any] = {
                'color': PALETTE[name],
                'edgecolor': PALETTE['card'],
                'linewidth': 0.6,
                'align': 'edge',
            }
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
    """Return bin edges between integers, equally spaced on a logarithmic axis, including the groups' boundaries."""
    num_bins = max(1, round(_BINS_PER_DECADE * np.log10((high + 1) / low)))
    inner = np.round(np.geomspace(low, high + 1, num_bins + 1))
    groups = [edge for edge in (FEW_BELOW, MANY_ABOVE + 1) if low < edge <= high]
    # An edge next to a group's boundary would make a bin too narrow to see.
    apart = [edge for edge in inner[1:-1] if all(abs(np.log(edge / group)) > 0.08 for group in groups)]
    return np.unique([low, *apart, *groups, high + 1]) - 0.5


def draw_reliability(axes: Axes, calibration: dict[str, dict[str, Any]], names: tuple[str, ...]) -> None:
    """Draw accuracy against confidence of some entries of `calibration`, as computed by detailed_metrics.

    The area of a dot is proportional to its number of images. A single entry is drawn with the 95 % intervals of its
    bins.
    """
    axes.plot([0, 1], [0, 1], color=PALETTE['muted'], linewidth=1, linestyle=(0, (3, 2)), zorder=1)
    for name in names:
        bins = calibration[name]['bins']
        images = np.array([entry['images'] for entry in bins])
        x, y = (np.array([entry[key] for entry in bins]) for key in ('confidence', 'accuracy'))
        color = PALETTE[name if name in GROUPS else 'valid']
        if len(names) == 1:
            low, high = binomial_interval(np.rint(y * images), images)
            axes.vlines(x, low, high, color=color, linewidth=1, alpha=0.5)
        axes.plot(x, y, color=color, linewidth=1.4, alpha=0.8, label=f'{name} ({100 * calibration[name]["ece"]:.1f} %)')
        axes.scatter(
            x, y, s=10 + 110 * images / images.max(), color=color, alpha=0.75, linewidths=0, zorder=3, clip_on=False
        )
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.25, 0.5, 0.75, 1])
        percent_axis(axis)
    axes.set_xlabel('confidence')
    axes.set_ylabel('accuracy')
    legend(axes)
