"""Compare methods on a data set: train a grid of methods and seeds and print a table with published errors.

python tools/grid.py --base cifar10_lt --methods ce,ldam_drw,crt --seeds 3 [--out FOLDER] [--jobs N]
                             [--options "--TRAIN_MAX_EPOCH 20 ..."] [--record] [--json FILE]

Each method with each seed is a run of main.py, followed by test.py if there is a test split. One run per GPU is active
at a time. If a method starts from the model of another method, that one is trained first. After an interruption, the
same command resumes. Output in OUT: runs/, logs/ and results.md, .csv, .tex, .json, .png.
"""

import argparse
import datetime
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.config.key import did_you_mean
from lib.config.options import Parser, local_path
from lib.errors import UserError, printable, shown, unquoted
from lib.experiments.method_list import METHODS, Method
from lib.runtime.log import print_lines

if TYPE_CHECKING:
    from lib.experiments.grid import Grid, SubRun
    from lib.experiments.parallel import Outcome

_CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
# Keys that have no influence on a result.
_DATA_PATHS = {f'DATASET.{key}' for key in ('ROOT', 'TRAIN_JSON', 'VALID_JSON', 'TEST_JSON', 'TEST_ROOT', 'SHARDS')}
_MISTAKE, _INTERRUPTED = 2, 130


def _whole_number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


# argparse shows the name of the type in its message.
_whole_number.__name__ = 'whole number above 0'


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UserError: an invalid option.
    """
    parser = Parser(
        prog='tools/grid.py',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        '--base',
        required=True,
        type=local_path,
        metavar='NAME',
        help='name of a config in configs/, such as cifar10_lt, or a path',
    )
    add('--methods', required=True, metavar='A,B,...', help=f'any of: {", ".join(METHODS)}')
    add('--seeds', type=_whole_number, default=3, metavar='N', help='number of seeds: 0 to N - 1 (default: 3)')
    add('--out', type=local_path, metavar='FOLDER', help='output folder (default: log/methods/NAME)')
    add('--jobs', type=_whole_number, metavar='N', help='runs in parallel (default: one per GPU, or 1 on the CPU)')
    add('--options', default='', metavar='"..."', help='options of main.py for every run')
    add(
        '--overlays', type=local_path, metavar='FOLDER', help="folder of the methods' configs (default: configs/method)"
    )
    add('--record', action='store_true', help='add the results to lib/experiments/measured.json, for docs/methods.md')
    add('--json', type=local_path, metavar='FILE', help='write a copy of results.json to this file')
    return parser.parse_args(argv)


def find_base(text: str, folder: Path = _CONFIGS) -> Path:
    """Return the path of a config, given as a path or as a name in `folder` (upper or lower case).

    Raises:
        UserError: there is no such config.
    """
    if Path(text).suffix in ('.yaml', '.yml'):
        if not Path(text).is_file():
            raise UserError(f'--base {unquoted(text)}: no such file')
        return Path(text)
    configs = {path.stem.lower(): path for path in sorted(folder.glob('*.yaml'))}
    if text.lower() not in configs:
        names = ', '.join(configs)
        raise UserError(f'--base {unquoted(text)}: neither a YAML file nor one of {names}{did_you_mean(text, configs)}')
    return configs[text.lower()]


def find_methods(text: str) -> tuple[Method, ...]:
    """Return the methods of 'a,b,c' without repetitions.

    Raises:
        UserError: an unknown method, or no method.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(',') if name.strip()))
    for name in names:
        if name not in METHODS:
            raise UserError(f'--methods: {shown(name)} is not a method{did_you_mean(name, METHODS)}; --help lists all')
    if not names:
        raise UserError('--methods is empty; --help lists all methods')
    return tuple(METHODS[name] for name in names)


def run_grid(arguments: argparse.Namespace) -> int:
    """Run the grid and return the exit code: 0, 2 if a run failed, 130 if the grid was interrupted."""
    base, methods = find_base(str(arguments.base)), find_methods(arguments.methods)
    # torch is imported only after the options are checked.
    from lib.experiments.grid import REPOSITORY, Grid, check_recipes, plan_runs, split_options
    from lib.experiments.parallel import Runner, device_slots, visible_gpus
    from lib.runtime.folders import lock_folder

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
        check_recipes(grid, runs)
        count = f'{len(runs)} {"run" if len(runs) == 1 else "runs"}'
        print_lines([f'{count} in {grid.out}, with their output in {grid.out / "logs"}'])
        outcome = Runner(runs, device_slots(arguments.jobs, gpus), log=lambda line: print_lines([line])).run()
        _report(arguments, grid, runs, outcome)
    if outcome.failed:
        print(f'error: {printable(_failures(outcome))}', file=sys.stderr)
        return _MISTAKE
    if outcome.stopped:
        print('stopped; run the same command to resume', file=sys.stderr)
        return _INTERRUPTED
    return 0


def _failures(outcome: 'Outcome') -> str:
    count = len(outcome.failed)
    names = ', '.join(outcome.failed)
    return f'{count} {"run" if count == 1 else "runs"} failed: {names}; run the same command to try again'


def _report(arguments: argparse.Namespace, grid: 'Grid', runs: list['SubRun'], outcome: 'Outcome') -> None:
    """Write and print the results of the finished runs."""
    from lib.experiments import records, tables
    from lib.experiments.records import run_environment
    from lib.experiments.results import dataset_key, make_rows
    from lib.experiments.tables import plot_table
    from lib.runtime.files import replace_together, write_json, write_text

    rows = make_rows(runs)
    if not rows:
        print('no results yet: no run is done')
        return
    dataset, imbalance = dataset_key(runs[0])
    fields: dict[str, Any] = {
        'base': grid.label,
        'dataset': dataset,
        'imbalance': imbalance,
        'options': {name: value for name, value in grid.changed().items() if name not in _DATA_PATHS},
        'failed': outcome.failed,
        **run_environment(),
        'date': datetime.date.today().isoformat(),
    }
    notes = _notes(grid, rows, outcome)
    markdown = tables.as_markdown(rows, notes)
    results = tables.as_json(rows, **fields)
    with replace_together(grid.out):
        write_text(grid.out / 'results.md', markdown)
        write_text(grid.out / 'results.csv', tables.as_csv(rows))
        write_text(grid.out / 'results.tex', tables.as_latex(rows, notes))
        write_json(grid.out / 'results.json', results)
        title = f'{grid.label}{f", imbalance {imbalance}" if imbalance else ""}'
        plot_table(grid.out / 'results.png', rows, title)
    if arguments.json:
        write_json(arguments.json, results)
    if arguments.record:
        names = ('base', 'dataset', 'imbalance', 'options', 'hardware', 'versions', 'date')
        shared = {name: fields[name] for name in names}
        records.save_measured(
            [
                {'method': row.method.name, **shared, 'seeds': row.seeds, 'figures': tables.spreads_as_json(row)}
                for row in rows
            ]
        )
        print('recorded in lib/experiments/measured.json')
        print('to update docs/methods.md: python tools/gallery.py')
    print_lines(['', *tables.as_text(rows).splitlines()])
    print_lines(line for note in notes for line in textwrap.wrap(note, 80))
    print_lines([f'wrote results.md, .csv, .tex, .json and .png in {grid.out}'])


def _notes(grid: 'Grid', rows: list, outcome: 'Outcome') -> list[str]:
    """Return notes below the table: units, sources, options and failed runs."""
    notes = ['Percent; ± is the standard deviation over seeds. An error is 1 - mean per-class accuracy.']
    sources = list(dict.fromkeys(row.published.source for row in rows if row.published))
    if sources:
        notes.append(f'Published (top-1 error): {"; ".join(sources)}.')
    changed = [f'{name} {value}' for name, value in grid.changed().items() if name not in _DATA_PATHS]
    if changed:
        notes.append(f'Options: {", ".join(changed)}.')
    if outcome.failed:
        notes.append(f'Failed runs, left out: {", ".join(outcome.failed)}.')
    return notes
