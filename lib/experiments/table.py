"""A grid's table in Markdown, CSV, LaTeX and JSON, and for the terminal.

The table of a grid: figures of each run, mean and deviation over seeds, beside what was published.
"""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lib.experiments.grid import SubRun, read_metrics
from lib.experiments.method_list import Method
from lib.experiments.records import Published, published_for, read_published

_GROUPS = ('many', 'medium', 'few')
# figure: heading. Errors and accuracies are fractions everywhere but in print.
FIGURES = {
    'last_mean_class_error': 'error, last epoch',
    'best_mean_class_error': 'error, best epoch',
    'last_top1_error': 'top-1 error, last',
    'best_top1_error': 'top-1 error, best',
    **{f'last_{group}': f'{group} accuracy' for group in _GROUPS},
    'test_mean_class_error': 'test error',
    'test_top1_error': 'test top-1 error',
    **{f'test_{group}': f'test {group} accuracy' for group in _GROUPS},
}
# On a balanced split these say the same as the mean class error.
_TOP1 = {
    'last_top1_error': 'last_mean_class_error',
    'best_top1_error': 'best_mean_class_error',
    'test_top1_error': 'test_mean_class_error',
}


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for a single value) over `count` seeds."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> 'Spread':
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def percent(self) -> str:
        """Return such as '28.05 ± 0.31'; one seed has no deviation."""
        return f'{100 * self.mean:.2f}' + ('' if self.deviation is None else f' ± {100 * self.deviation:.2f}')


@dataclass(frozen=True)
class Row:
    """One method: how many seeds are done, its figures, and the published one where there is one."""

    method: Method
    seeds: int
    figures: dict[str, Spread]
    published: Published | None


def figures_of(run: SubRun) -> dict[str, float]:
    """Return the figures of a finished run; those that its data cannot give are absent."""
    if run.method.script == 'main.py':
        valid = [line for line in read_metrics(run.folder) if line['split'] == 'valid']
        figures = epoch_figures(valid)
    else:
        # One model comes of it, so there is no best epoch.
        after = json.loads((run.folder / 'tau.json').read_text(encoding='utf-8'))['after']
        figures = _named('last', after)
    if run.test_metrics.exists():
        figures |= _named('test', json.loads(run.test_metrics.read_text(encoding='utf-8')))
    return figures


def epoch_figures(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return figures of the last epoch, and errors of the one with the lowest mean class error (first of equals)."""
    if not lines:
        return {}
    best = _named('best', min(lines, key=lambda line: (line['mean_class_error'], line['epoch'])))
    errors = {name: value for name, value in best.items() if name.endswith('error')}
    return _named('last', max(lines, key=lambda line: line['epoch'])) | errors


def _named(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    found = {name: metrics[name] for name in ('mean_class_error', *_GROUPS) if name in metrics}
    if 'top1' in metrics:
        found['top1_error'] = 1 - metrics['top1']
    return {f'{prefix}_{name}': value for name, value in found.items()}


def make_rows(runs: Sequence[SubRun]) -> list[Row]:
    """Return a row a method, in the order of the runs; those that nobody asked for, and those without a finished run,
    are left out."""
    published = read_published()
    by_method: dict[str, list[SubRun]] = {}
    for run in runs:
        if run.asked:
            by_method.setdefault(run.method.name, []).append(run)
    rows = []
    for its_runs in by_method.values():
        found = [figures_of(run) for run in its_runs if run.is_trained()]
        if found:
            known = published_for(published, its_runs[0].method.name, *data_of(its_runs[0]))
            rows.append(Row(its_runs[0].method, len(found), spreads(found), known))
    return rows


def spreads(found: Sequence[dict[str, float]]) -> dict[str, Spread]:
    """Return mean and deviation of each figure over the runs that have it."""
    values = {name: [figures[name] for figures in found if name in figures] for name in FIGURES}
    return {name: Spread.of(some) for name, some in values.items() if some}


def data_of(run: SubRun) -> tuple[str, int | None]:
    """Return data set and imbalance by which published figures are found: (cifar10_lt, 100), (imagenet_lt, None)."""
    data = run.cfg.DATASET
    if not data.NAME.startswith('cifar'):
        return run.grid.label, None
    # Steps instead of an exponential fall are another data set.
    name = data.NAME if data.IMBALANCE_TYPE == 'exp' else f'{data.NAME}_{data.IMBALANCE_TYPE}'
    return name, round(data.IMBALANCE_RATIO)


def shown_figures(rows: Sequence[Row]) -> list[str]:
    """Return the figures that a printed table has columns for: what somebody has, and top-1 where it says more."""
    shown = []
    for name in FIGURES:
        having = [row for row in rows if name in row.figures]
        same = _TOP1.get(name)
        if same:
            having = [row for row in having if abs(row.figures[name].mean - row.figures[same].mean) > 1e-9]
        if having:
            shown.append(name)
    return shown


def headline(rows: Sequence[Row]) -> str:
    """Return the figure that the picture shows: on the test split where every row has one, else on valid."""
    on_test = all('test_mean_class_error' in row.figures for row in rows)
    return 'test_mean_class_error' if on_test else 'last_mean_class_error'


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
