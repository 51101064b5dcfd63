"""The style of all charts, and their output: PNG files, and inline SVG that uses the page's CSS colors."""

import io
import os
import re
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib.style
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lib.report.page import PALETTE
from lib.runtime.files import replace_atomically

PANEL_SIZE = (4.6, 2.9)  # inches of 72 SVG units: readable on a phone, and two fit side by side on a desktop

_STYLE = {
    'font.family': 'DejaVu Sans',  # included in matplotlib, so charts are the same on every machine
    'font.size': 9,
    'text.color': PALETTE['ink'],
    'text.parse_math': False,
    'axes.edgecolor': PALETTE['line'],
    'axes.labelcolor': PALETTE['muted'],
    'axes.labelsize': 9,
    'axes.titlesize': 10.5,
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'axes.facecolor': 'none',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.spines.left': False,
    'axes.grid': True,
    'axes.grid.axis': 'y',
    'axes.axisbelow': True,
    'axes.unicode_minus': True,
    'grid.color': PALETTE['line'],
    'grid.linewidth': 0.8,
    'xtick.color': PALETTE['line'],
    'ytick.color': PALETTE['line'],
    'xtick.labelcolor': PALETTE['muted'],
    'ytick.labelcolor': PALETTE['muted'],
    'ytick.major.size': 0,
    'xtick.minor.size': 0,
    'ytick.minor.size': 0,
    'legend.frameon': False,
    'legend.fontsize': 9,
    'lines.linewidth': 1.9,
    'lines.solid_capstyle': 'round',
    'svg.fonttype': 'none',
    'svg.hashsalt': 'report',  # without it, the ids in the SVG are random, and so are the page's bytes
}


def styled() -> AbstractContextManager[None]:
    """Return a context with the style of all charts; it ignores the user's matplotlibrc."""
    return matplotlib.style.context(['default', _STYLE])


def new_panel() -> tuple[Figure, Axes]:
    """Return a figure with one chart in the page's size."""
    figure = Figure(figsize=PANEL_SIZE, layout='constrained')
    return figure, figure.add_subplot()


def legend(axes: Axes) -> None:
    """Draw the legend in a row above the chart."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            loc='lower left',
            bbox_to_anchor=(0, 1.0),
            ncols=4,
            borderaxespad=0.2,
            borderpad=0.2,
            handlelength=1.4,
            columnspacing=1.0,
            handletextpad=0.5,
            labelcolor=PALETTE['ink'],
        )


def percent_axis(axis: Axis) -> None:
    """Label an axis of fractions with percentages, without trailing zeros."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{100 * value:.6g}%'))


def save_png(path: str | os.PathLike, figure: Figure) -> Path:
    """Write `figure` as PNG on white, atomically, without date or program name in the metadata."""
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format='png', dpi=160, facecolor='white', metadata={'Software': None})
    return Path(path)


def inline_svg(figure: Figure, description: str) -> Markup:
    """Return `figure` as an <svg> for an HTML page, with CSS variables as colors and the page's font.

    `description` is read by screen readers. Safe to insert: matplotlib escapes the texts of the figure, and this
    function escapes `description`.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format='svg', transparent=True, metadata={'Date': None, 'Creator': None})
    text = buffer.getvalue()
    view_box = re.findall(r'viewBox="([^"]*)"', text)[0]
    body = text[text.index('>', text.index('<svg')) + 1 :]
    body = re.sub(r'<metadata>.*?</metadata>|<!--.*?-->', '', body, flags=re.DOTALL)
    body = re.sub(r'font: (?:(bold|\d+) )?([\d.]+)px [^;\"]*', _font, body)
    for name, color in PALETTE.items():
        body = body.replace(color, f'var(--{name})')
    body = re.sub(r'\n\s*', '\n', body)
    label = escape(description)
    return Markup(f'<svg viewBox="{view_box}" role="img" aria-label="{label}">{body.strip()}')


def _font(match: re.Match) -> str:
    weight = f'; font-weight: {match[1]}' if match[1] else ''
    return f'font-size: {match[2]}px{weight}'
