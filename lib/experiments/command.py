"""Which method is best on this data? A grid of methods and seeds, beside the published figures.

python tools/grid.py --base cifar10_lt --methods ce,ldam_drw,crt --seeds 3 [--out FOLDER] [--jobs N]
                             [--options "--TRAIN_MAX_EPOCH 20 ..."] [--record] [--json FILE]

Each method with each seed is an ordinary run (main.py, then test.py where there is a test split), as many at a time as
there are GPUs; methods that start from another one's model bring its runs along. Stopped anywhere, the same command
goes on. OUT gets runs/, logs/ and results.md, .csv, .tex, .json, .png.
"""

import argparse
import datetime
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lib.config.key import did_you_mean
from lib.errors import UserError
from lib.experiments.method_list import METHODS, Method

if TYPE_CHECKING:
    from lib.experiments.grid import Grid, SubRun
    from lib.experiments.parallel import Outcome

_CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
# Keys that say nothing of a result.
_WHERE_DATA_LIES = {
    f'DATASET.{key}' for key in ('ROOT', 'TRAIN_JSON', 'VALID_JSON', 'TEST_JSON', 'TEST_ROOT', 'SHARDS')
}
_MISTAKE, _INTERRUPTED = 2, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}; --help says more')


def _whole_number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


# argparse names the type in its message.
_whole_number.__name__ = 'whole number above 0'


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command line.

    Raises:
        UserError: a mistake in it.
    """
    parser = _Parser(
        prog='tools/grid.py',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add('--base', required=True, metavar='NAME', help='a config of configs/, such as cifar10_lt, or the path of one')
    add('--methods', required=True, metavar='A,B,...', help=f'of: {", ".join(METHODS)}')
    add('--seeds', type=_whole_number, default=3, metavar='N', help='seeds 0 to N - 1 (default: 3)')
    add('--out', metavar='FOLDER', help='everything is written here (default: log/methods/NAME)')
    add('--jobs', type=_whole_number, metavar='N', help='runs at a time (default: one a GPU, else 1)')
    add('--options', default='', metavar='"..."', help='options of main.py, laid over every run')
    add('--overlays', metavar='FOLDER', help="folder of the methods' configs (default: configs/method)")
    add('--record', action='store_true', help='merge the results into lib/experiments/measured.json, for the gallery')
    add('--json', metavar='FILE', help='write results.json here too')
    return parser.parse_args(argv)


def find_base(text: str, folder: Path = _CONFIGS) -> Path:
    """Return the config that is meant: a path, or a name of `folder` in any case.

    Raises:
        UserError: there is none.
    """
    if Path(text).suffix in ('.yaml', '.yml'):
        if not Path(text).is_file():
            raise UserError(f'--base {text}: no such file')
        return Path(text)
    known = {path.stem.lower(): path for path in sorted(folder.glob('*.yaml'))}
    if text.lower() not in known:
        raise UserError(f'--base {text}: neither a YAML file nor one of {", ".join(known)}{did_you_mean(text, known)}')
    return known[text.lower()]


def find_methods(text: str) -> tuple[Method, ...]:
    """Return the methods of 'a,b,c', each once.

    Raises:
        UserError: none, or one that nobody knows.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(',') if name.strip()))
    for name in names:
        if name not in METHODS:
            raise UserError(f'--methods: {name!r} is not a method{did_you_mean(name, METHODS)}; --help lists all')
    if not names:
        raise UserError('--methods names none; --help lists all')
    return tuple(METHODS[name] for name in names)


def run_grid(arguments: argparse.Namespace) -> int:
    """Run what the command line asks for and return the exit code: 2 where a run failed, 130 where one was stopped."""
    base, methods = find_base(arguments.base), find_methods(arguments.methods)
    # torch is imported only now that there is work to do.
    from lib.experiments.grid import REPOSITORY, Grid, plan_runs, remember_recipes, split_options
    from lib.experiments.parallel import Runner, places, visible_gpus
    from lib.runtime.files import lock_folder

    grid = Grid(
        base=base,
        methods=methods,
        seeds=arguments.seeds,
        out=Path(arguments.out or Path('log', 'methods', base.stem.lower())),
        options=split_options(arguments.options),
        overlays=Path(arguments.overlays or REPOSITORY / 'configs' / 'method'),
        repository=REPOSITORY,
    )
    runs = plan_runs(grid)
    gpus = [] if runs[0].cfg.RUN.DEVICE == 'cpu' else visible_gpus()
    with lock_folder(grid.out, '--out'):
        remember_recipes(grid, runs)
        print(f'{len(runs)} runs into {grid.out}; what they say goes to {grid.out / "logs"}', flush=True)
        outcome = Runner(runs, places(arguments.jobs, gpus), say=lambda line: print(line, flush=True)).run()
        _report(arguments, grid, runs, outcome)
    if outcome.failed:
        print(f'error: {_failures(outcome)}', file=sys.stderr)
        return _MISTAKE
    if outcome.stopped:
        print('stopped; the same command goes on', file=sys.stderr)
        return _INTERRUPTED
    return 0


def _failures(outcome: 'Outcome') -> str:
    count = len(outcome.failed)
    names = ', '.join(outcome.failed)
    return f'{count} {"run" if count == 1 else "runs"} failed: {names}; the same command tries again'


def _report(arguments: argparse.Namespace, grid: 'Grid', runs: list['SubRun'], outcome: 'Outcome') -> None:
    """Write and print the results of the runs that are done."""
    from lib.experiments import records
    from lib.experiments import table as table_formats
    from lib.experiments.records import run_environment
    from lib.experiments.table import data_of, make_rows
    from lib.experiments.table_chart import plot_table
    from lib.runtime.files import write_json, write_text

    rows = make_rows(runs)
    if not rows:
        print('no run is done yet, so there are no results')
        return
    dataset, imbalance = data_of(runs[0])
    about: dict[str, Any] = {
        'base': grid.label,
        'dataset': dataset,
        'imbalance': imbalance,
        'options': {name: value for name, value in grid.changed().items() if name not in _WHERE_DATA_LIES},
        'failed': outcome.failed,
        **run_environment(),
        'date': datetime.date.today().isoformat(),
    }
    notes = _notes(grid, rows, outcome)
    markdown = table_formats.as_markdown(rows, notes)
    results = table_formats.as_json(rows, **about)
    write_text(grid.out / 'results.md', markdown)
    write_text(grid.out / 'results.csv', table_formats.as_csv(rows))
    write_text(grid.out / 'results.tex', table_formats.as_latex(rows, notes))
    write_json(grid.out / 'results.json', results)
    if arguments.json:
        write_json(arguments.json, results)
    title = f'{grid.label}{f", imbalance {imbalance}" if imbalance else ""}'
    plot_table(grid.out / 'results.png', rows, title)
    if arguments.record:
        kept = ('base', 'dataset', 'imbalance', 'options', 'hardware', 'versions', 'date')
        shared = {name: about[name] for name in kept}
        records.record(
            [
                {'method': row.method.name, **shared, 'seeds': row.seeds, 'figures': table_formats.as_figures(row)}
                for row in rows
            ]
        )
        print('recorded in lib/experiments/measured.json; python tools/gallery.py renews docs/methods.md')
    print(f'\n{table_formats.as_text(rows)}')
    print('\n'.join(line for note in notes for line in textwrap.wrap(note, 80)))
    print(f'wrote results.md, .csv, .tex, .json and .png into {grid.out}')


def _notes(grid: 'Grid', rows: list, outcome: 'Outcome') -> list[str]:
    """Say what the figures are and what they lack."""
    notes = ['Percent; ± is the standard deviation over seeds. An error is 1 - the mean accuracy of the classes.']
    sources = list(dict.fromkeys(row.published.source for row in rows if row.published))
    if sources:
        notes.append(f'Published (top-1 error): {"; ".join(sources)}.')
    changed = [f'{name} {value}' for name, value in grid.changed().items() if name not in _WHERE_DATA_LIES]
    if changed:
        notes.append(f'With {", ".join(changed)}.')
    if outcome.failed:
        notes.append(f'Without failed runs: {", ".join(outcome.failed)}.')
    return notes
