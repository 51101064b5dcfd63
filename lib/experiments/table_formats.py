"""A grid's table in Markdown, CSV, LaTeX and JSON, and for the terminal."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from lib.experiments.method_table import FIGURES, Row, headline, shown_figures

_TEX = {
    '\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '±': r'$\pm$', 'τ': r'$\tau$',
    **{letter: f'\\{letter}' for letter in '&%$#_{}'},
}  # fmt: skip


def as_text(rows: Sequence[Row]) -> str:
    """Return the figures that count most in at most 80 columns, in percent: of the test split where all have one."""
    error = headline(rows)
    split = error.partition('_')[0]
    table = [['method', 'seeds', 'test error' if split == 'test' else 'error', 'many', 'medium', 'few', 'published']]
    for row in rows:
        means = [row.figures.get(f'{split}_{group}') for group in ('many', 'medium', 'few')]
        groups = ['-' if mean is None else f'{100 * mean.mean:.1f}' for mean in means]
        spread = row.figures[error].percent() if error in row.figures else '-'
        known = row.published.error if row.published else '-'
        table.append([row.method.name, str(row.seeds), spread, *groups, known])
    if not any(row.published for row in rows):
        table = [cells[:-1] for cells in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        '  '.join([cells[0].ljust(widths[0]), *(map(str.rjust, cells[1:], widths[1:]))]).rstrip() for cells in table
    ]
    return '\n'.join(lines) + '\n'


def as_markdown(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Return a table in percent whose columns are aligned, so that it reads well as plain text too."""
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
    """Return all figures as fractions: mean and deviation in columns of their own, empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    columns = [f'{name}{ending}' for name in FIGURES for ending in ('', '_std')]
    writer.writerow(('method', 'seeds', *columns, 'published_error', 'published_source'))
    for row in rows:
        values: list[Any] = []
        for name in FIGURES:
            spread = row.figures.get(name)
            values += (
                ['', ''] if spread is None else [spread.mean, '' if spread.deviation is None else spread.deviation]
            )
        known = row.published
        published = [float(known.error) / 100, known.source] if known else ['', '']
        writer.writerow((row.method.name, row.seeds, *values, *published))
    return text.getvalue()


def as_latex(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Return a tabular in percent; it needs the package booktabs."""
    head, *body = [[_escaped(cell) for cell in line] for line in _cells(rows)]
    lines = ['% \\usepackage{booktabs}', *(f'% {" ".join(note.split())}' for note in notes)]
    lines += [f'\\begin{{tabular}}{{l{"r" * (len(head) - 1)}}}', '\\toprule', f'{" & ".join(head)} \\\\', '\\midrule']
    lines += [f'{" & ".join(cells)} \\\\' for cells in body]
    return '\n'.join([*lines, '\\bottomrule', '\\end{tabular}']) + '\n'


def as_json(rows: Sequence[Row], **about: Any) -> dict[str, Any]:
    """Return the figures by name (<method>_<figure>, means), and each with its deviation and number of seeds."""
    return {
        'figures': {f'{row.method.name}_{name}': spread.mean for row in rows for name, spread in row.figures.items()},
        'methods': [
            {
                'method': row.method.name,
                'seeds': row.seeds,
                'figures': as_figures(row),
                'published': row.published
                and {'error': float(row.published.error) / 100, 'source': row.published.source},
            }
            for row in rows
        ],
        **about,
    }


def as_figures(row: Row) -> dict[str, dict[str, float | int | None]]:
    """Return {figure: {mean, std, seeds}}, fractions."""
    return {
        name: {'mean': spread.mean, 'std': spread.deviation, 'seeds': spread.count}
        for name, spread in row.figures.items()
    }


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """Return the printed table, its heading first."""
    shown = shown_figures(rows)
    published = ['published error'] if any(row.published for row in rows) else []
    table = [['method', 'seeds', *(FIGURES[name] for name in shown), *published]]
    for row in rows:
        cells = [row.figures[name].percent() if name in row.figures else '' for name in shown]
        known = [row.published.error if row.published else ''] if published else []
        table.append([row.method.title, str(row.seeds), *cells, *known])
    return table


def _escaped(text: str) -> str:
    return ''.join(_TEX.get(letter, letter) for letter in text)
