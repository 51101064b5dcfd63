"""The results of a grid as tables (terminal, Markdown, CSV, LaTeX, JSON) and as a bar chart."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.experiments.results import METRICS, Row, headline_metric, table_metrics
from lib.report.chart_style import legend, save_png, styled
from lib.report.page import PALETTE
from lib.runtime.csv_file import write_rows

_TEX = {
    '\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '±': r'$\pm$', 'τ': r'$\tau$',
    **{letter: f'\\{letter}' for letter in '&%$#_{}'},
}  # fmt: skip


def as_text(rows: Sequence[Row]) -> str:
    """Return a table of error and group accuracies in percent, at most 80 columns wide.

    The metrics are those of the test split if every row has a test error, else those of the valid split.
    """
    error = headline_metric(rows)
    split = error.partition('_')[0]
    table = [['method', 'seeds', 'test error' if split == 'test' else 'error', 'many', 'medium', 'few', 'published']]
    for row in rows:
        means = [row.metrics.get(f'{split}_{group}') for group in ('many', 'medium', 'few')]
        groups = ['-' if mean is None else f'{100 * mean.mean:.1f}' for mean in means]
        spread = row.metrics[error].percent() if error in row.metrics else '-'
        published = row.published.error if row.published else '-'
        table.append([row.method.name, str(row.seeds), spread, *groups, published])
    if not any(row.published for row in rows):
        table = [cells[:-1] for cells in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        '  '.join([cells[0].ljust(widths[0]), *(map(str.rjust, cells[1:], widths[1:]))]).rstrip() for cells in table
    ]
    return '\n'.join(lines) + '\n'


def as_markdown(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Return a Markdown table in percent, with aligned columns."""
    table = _cells(rows)
    escaped = [[cell.replace('\\', '\\\\').replace('|', '\\|') for cell in line] for line in table]
    widths = [max(3, *map(len, column)) for column in zip(*escaped, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return f'| {" | ".join([cells[0].ljust(widths[0]), *padded[1:]])} |'

    rule = [':' + '-' * (widths[0] - 1), *('-' * (width - 1) + ':' for width in widths[1:])]
    lines = [line(escaped[0]), line(rule), *map(line, escaped[1:])]
    return '\n'.join([*lines, *(f'\n{note}' for note in notes)]) + '\n'


def as_csv(rows: Sequence[Row]) -> str:
    """Return all metrics as fractions: means, and standard deviations in columns *_std; unknown cells are empty."""
    text = io.StringIO()
    columns = [f'{name}{ending}' for name in METRICS for ending in ('', '_std')]
    table = []
    for row in rows:
        values: list[Any] = []
        for name in METRICS:
            spread = row.metrics.get(name)
            values += (
                ['', ''] if spread is None else [spread.mean, '' if spread.deviation is None else spread.deviation]
            )
        reference = row.published
        published = [float(reference.error) / 100, reference.source] if reference else ['', '']
        table.append((row.method.name, row.seeds, *values, *published))
    write_rows(text, ('method', 'seeds', *columns, 'published_error', 'published_source'), table)
    return text.getvalue()


def as_latex(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Return a LaTeX tabular in percent; it needs the package booktabs."""
    head, *body = [[_escaped(cell) for cell in line] for line in _cells(rows)]
    lines = ['% \\usepackage{booktabs}', *(f'% {" ".join(note.split())}' for note in notes)]
    lines += [f'\\begin{{tabular}}{{l{"r" * (len(head) - 1)}}}', '\\toprule', f'{" & ".join(head)} \\\\', '\\midrule']
    lines += [f'{" & ".join(cells)} \\\\' for cells in body]
    return '\n'.join([*lines, '\\bottomrule', '\\end{tabular}']) + '\n'


def as_json(rows: Sequence[Row], **fields: Any) -> dict[str, Any]:
    """Return the content of results.json: means as <method>_<metric>, details of each method, and `fields`."""
    return {
        'figures': {f'{row.method.name}_{name}': spread.mean for row in rows for name, spread in row.metrics.items()},
        'methods': [
            {
                'method': row.method.name,
                'seeds': row.seeds,
                'figures': spreads_as_json(row),
                'published': row.published
                and {'error': float(row.published.error) / 100, 'source': row.published.source},
            }
            for row in rows
        ],
        **fields,
    }


def spreads_as_json(row: Row) -> dict[str, dict[str, float | int | None]]:
    """Return {metric: {mean, std, seeds}}, fractions."""
    return {
        name: {'mean': spread.mean, 'std': spread.deviation, 'seeds': spread.count}
        for name, spread in row.metrics.items()
    }


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """Return the cells of the printed table, headings first."""
    columns = table_metrics(rows)
    published = ['published error'] if any(row.published for row in rows) else []
    table = [['method', 'seeds', *(METRICS[name] for name in columns), *published]]
    for row in rows:
        cells = [row.metrics[name].percent() if name in row.metrics else '' for name in columns]
        reference = [row.published.error if row.published else ''] if published else []
        table.append([row.method.title, str(row.seeds), *cells, *reference])
    return table


def _escaped(text: str) -> str:
    return ''.join(_TEX.get(letter, letter) for letter in text)


_LABELS = {
    'test_mean_class_error': 'mean class error on the test split, %',
    'last_mean_class_error': 'mean class error on the valid split after the last epoch, %',
}
_BAR_INCHES, _FRAME_INCHES, _WIDTH_INCHES = 0.27, 1.15, 7.4


def plot_table(path: str | os.PathLike, rows: Sequence[Row], title: str) -> Path | None:
    """Write a bar chart of the errors as PNG, the lowest on top; None, and no file, if no row has an error."""
    metric = headline_metric(rows)
    shown = sorted((row for row in rows if metric in row.metrics), key=lambda row: row.metrics[metric].mean)
    if not shown:
        return None
    with styled():
        figure = Figure((_WIDTH_INCHES, _FRAME_INCHES + _BAR_INCHES * len(shown)), layout='constrained')
        axes = figure.add_subplot()
        positions = range(len(shown))
        spreads = [row.metrics[metric] for row in shown]
        means = [100 * spread.mean for spread in spreads]
        deviations = [100 * (spread.deviation or 0) for spread in spreads]
        axes.barh(positions, means, height=0.62, color=PALETTE['valid'], alpha=0.55, label='measured')
        if any(deviations):
            axes.errorbar(
                means, positions, xerr=deviations, fmt='none', ecolor=PALETTE['ink'], elinewidth=1.1, capsize=2.5,
                zorder=5, label='standard deviation over seeds',
            )  # fmt: skip
        _mark_published(axes, shown)
        ends = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
        ends += [float(row.published.error) for row in shown if row.published]
        axes.set_xlim(0, 1.04 * max(*ends, 1))
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_yticks(positions, [row.method.title for row in shown])
        axes.tick_params(axis='y', labelcolor=PALETTE['ink'])
        axes.grid(axis='y', visible=False)
        axes.grid(axis='x', visible=True)
        # In a column on the right, the numbers cover neither bars nor marks.
        for position, spread in zip(positions, spreads, strict=True):
            axes.text(
                1.015,
                position,
                spread.percent(),
                transform=axes.get_yaxis_transform(),
                va='center',
                ha='left',
                fontsize=8.5,
            )
        axes.set_xlabel(_LABELS[metric])
        axes.set_title(title, pad=24)
        legend(axes)
        return save_png(path, figure)


def _mark_published(axes: Axes, shown: Sequence[Row]) -> None:
    marks = [(float(row.published.error), position) for position, row in enumerate(shown) if row.published]
    if marks:
        errors, positions = zip(*marks, strict=True)
        # A line across the bar: a dot would hide the deviation.
        low, high = [position - 0.4 for position in positions], [position + 0.4 for position in positions]
        axes.vlines(errors, low, high, color=PALETTE['few'], linewidth=2.2, zorder=4, label='published')
