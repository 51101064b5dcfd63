"""The runs of a grid of methods and seeds: their order, their commands, and the next step of each.

The next step is derived from the files in the run folder, so an interrupted grid can be resumed at any point.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.builders.data import has_test_split
from lib.builders.preprocessing import is_auto
from lib.commands.predict_inputs import test_source_name
from lib.commands.predict_output import stem_name
from lib.config.defaults import Config
from lib.config.load import load_config
from lib.config.options import parse_options
from lib.config.yaml_text import read_config_file
from lib.errors import UserError, shown
from lib.experiments.method_list import METHODS, Method
from lib.runtime.files import write_json
from lib.runtime.json_file import Record, read_json
from lib.trainer.checkpointing.io import read_checkpoint
from lib.trainer.checkpointing.latest import checkpoints_in
from lib.trainer.checkpointing.state import read_history

REPOSITORY = Path(__file__).resolve().parents[2]
# Options that the grid sets itself for every run.
_RESERVED = (
    'NAME',
    'SEED',
    'LOG_ROOT',
    'RESUME_MODEL',
    'RESUME_MODE',
    'OVERWRITE',
    'LOSS.TEACHER',
    'TAU_NORM.LOG_ROOT',
)


@dataclass(frozen=True)
class Grid:
    """The settings of a grid.

    Attributes:
        base: config file of a data set and its recipe.
        methods: in the order of the table.
        seeds: number of seeds; they are 0, 1, ...
        out: folder for all output.
        overlays: folder of the methods' configs.
        repository: folder of main.py, test.py and tau_norm.py.
        options: command-line options of every run.
    """

    base: Path
    methods: tuple[Method, ...]
    seeds: int
    out: Path
    overlays: Path
    repository: Path
    options: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name of the base config in lower case."""
        return self.base.stem.lower()

    def files(self, method: Method) -> list[str]:
        """Return the config files of a method; tau_norm.py also gets those of stage 1, whose recipe it keeps."""
        names = [method.name] if method.script == 'main.py' else [method.stage1, method.name]
        return [str(self.base), *(str(self.overlays / f'{name}.yaml') for name in names)]

    def config(self, method: Method) -> Config:
        """Return the resolved config of a method, without values from stage 1's checkpoint.

        Raises:
            UserError: a mistake in its files, or an option that does not fit the method.
        """
        # Placeholders for paths that are known later: some checks depend on whether these options are set.
        placeholders = ['--RESUME_MODEL', 'stage1'] if method.stage1 else []
        placeholders += ['--LOSS_TEACHER', 'teacher'] if method.teacher else []
        try:
            argv = ['--config', *self.files(method), *self.settings(method), *placeholders]
            return load_config(argv, program='', description='', find_checkpoint_config=lambda *_: None).cfg
        except UserError as error:
            raise UserError(f'method {method.name} over {self.base}: {error}') from None

    def settings(self, method: Method) -> list[str]:
        """Return the options of a method; a method with MAX_EPOCH 0 trains 0 epochs even if the options set more."""
        epochs = read_config_file(self.files(method)[-1]).get('TRAIN.MAX_EPOCH')
        return [*self.options, *(['--TRAIN_MAX_EPOCH', '0'] if epochs == 0 else [])]

    def changed(self) -> dict[str, Any]:
        """Return the keys set by the options that may change a result, with their values.

        Raises:
            UserError: a mistake in the options, or an option that the grid sets itself.
        """
        files, values = parse_options(self.options, program='', description='')
        reserved = [name for name in values if name in _RESERVED] + ['--config'] * bool(files)
        if reserved:
            raise UserError(f'--options sets {reserved[0]}, which the grid sets for each run; leave it out')
        return {name: value for name, value in values.items() if not name.startswith('RUN.')}


@dataclass(frozen=True)
class Step:
    """One command of a run, and a verb for the log."""

    verb: str
    command: list[str]


@dataclass(eq=False)
class SubRun:
    """One method with one seed.

    Attributes:
        cfg: its resolved config.
        needs: runs whose models are its stage 1 or its teacher.
        in_table: False for a run that is only needed by others.
    """

    grid: Grid
    method: Method
    seed: int
    cfg: Config
    needs: list['SubRun'] = field(default_factory=list)
    in_table: bool = True

    @property
    def name(self) -> str:
        """Name of the run, <base>_<method>_<seed>."""
        return f'{self.grid.label}_{self.method.name}_{self.seed}'

    @property
    def folder(self) -> Path:
        """Run folder."""
        return self.grid.out / ('runs' if self.method.script == 'main.py' else 'tau') / self.name

    @property
    def model(self) -> Path:
        """Checkpoint that is evaluated: after the last epoch, or after re-balancing."""
        return self.folder / ('last.pth' if self.method.script == 'main.py' else 'best_model.pth')

    @property
    def log(self) -> Path:
        """Output of the run's commands."""
        return self.grid.out / 'logs' / f'{self.name}.txt'

    def next_step(self) -> Step | None:
        """Return the next step, or None if the run is done."""
        if not self.is_trained():
            return self._training() if self.method.script == 'main.py' else self._rebalancing()
        return Step('test', self._command('test.py', '--RESUME_MODEL', self.model)) if self._needs_test() else None

    def is_trained(self) -> bool:
        """Return True if the last epoch is done (or tau chosen) and the model saved."""
        if self.method.script != 'main.py':
            return (self.folder / 'tau.json').exists() and self.model.exists()
        if not self.model.exists():
            return False
        last = self._last_epoch()
        if max((line['epoch'] for line in read_history(self.folder)), default=0) < last:
            return False
        # metrics.jsonl is written before the checkpoint, so a run killed in between is not done.
        progress = read_checkpoint(self.model, with_rows=False, mmap=True).progress
        return progress is not None and progress.epoch >= last

    def _last_epoch(self) -> int:
        """Return TRAIN.MAX_EPOCH of a run that has started; where it is auto, the run has chosen it."""
        if not is_auto('TRAIN.MAX_EPOCH', self.cfg.TRAIN.MAX_EPOCH):
            return self.cfg.TRAIN.MAX_EPOCH
        return int(read_config_file(str(self.folder / 'config.yaml'))['TRAIN.MAX_EPOCH'])

    @property
    def test_metrics(self) -> Path:
        """Metrics file that test.py writes."""
        return self.model.with_name(f'{self._prediction}.metrics.json')

    @property
    def _prediction(self) -> str:
        return stem_name(self.model, test_source_name(self.cfg))

    def _needs_test(self) -> bool:
        """Return True if there is a test split without predictions of this model; CIFAR's is its valid split."""
        if self.cfg.DATASET.NAME.startswith('cifar') or not has_test_split(self.cfg):
            return False
        # Without labels, test.py writes predictions but no metrics.
        written = [
            path for path in (self.test_metrics, self.model.with_name(f'{self._prediction}.csv')) if path.exists()
        ]
        return not any(path.stat().st_mtime_ns >= self.model.stat().st_mtime_ns for path in written)

    def _training(self) -> Step:
        options: list[object] = ['--RESUME_MODEL', 'last']
        if self.method.stage1 and not checkpoints_in(self.folder):
            options = ['--RESUME_MODEL', self._stage1(), '--RESUME_MODE', 'finetune']
        if self.method.teacher:
            options += ['--LOSS_TEACHER', self._needed(self.method.teacher).model]
        return Step('train', self._command('main.py', *options))

    def _rebalancing(self) -> Step:
        # Files in the folder are overwritten: without tau.json, they are those of an interrupted run.
        options = ('--TAU_NORM_LOG_ROOT', self.grid.out / 'tau', '--OVERWRITE', 'True')
        return Step('re-balance', self._command('tau_norm.py', '--RESUME_MODEL', self._stage1(), *options))

    def _stage1(self) -> Path:
        return self._needed(self.method.stage1).folder / self.method.start

    def _needed(self, name: str) -> 'SubRun':
        return next(run for run in self.needs if run.method.name == name)

    def _command(self, script: str, *more: object) -> list[str]:
        grid = self.grid
        options = ['--NAME', self.name, '--SEED', self.seed, '--LOG_ROOT', grid.out / 'runs', *more]
        command = [sys.executable, grid.repository / script, '--config', *grid.files(self.method)]
        return [str(part) for part in (*command, *grid.settings(self.method), *options)]


def plan_runs(grid: Grid) -> list[SubRun]:
    """Return all runs, seed by seed, each once and after those it needs.

    Raises:
        UserError: a method does not fit the base or the options.
    """
    grid.changed()
    runs: dict[tuple[str, int], SubRun] = {}
    configs: dict[str, Config] = {}
    in_table = {method.name for method in grid.methods}

    def add(method: Method, seed: int) -> SubRun:
        if (method.name, seed) not in runs:
            needs = [add(METHODS[name], seed) for name in method.needs]
            if method.name not in configs:
                configs[method.name] = grid.config(method)
            run = SubRun(grid, method, seed, configs[method.name], needs, method.name in in_table)
            runs[method.name, seed] = run
        return runs[method.name, seed]

    for seed in range(grid.seeds):
        for method in grid.methods:
            add(method, seed)
    return list(runs.values())


def check_recipes(grid: Grid, runs: Sequence[SubRun]) -> None:
    """Write the recipe of each method to OUT/grid.json, and compare it with the recipe of the runs in OUT.

    Raises:
        UserError: OUT holds runs of another recipe, whose results must not be mixed with those of this one.
    """
    file = grid.out / 'grid.json'
    recipes = read_json(file, dict[str, Record]) if file.exists() else {}
    for method in {run.method.name: run.method for run in runs}.values():
        values: dict[str, Any] = {}
        for layer in (*map(read_config_file, grid.files(method)), grid.changed()):
            values.update({name: value for name, value in layer.items() if not name.startswith('RUN.')})
        recipe = json.loads(json.dumps(values))
        before = recipes.setdefault(f'{grid.label}_{method.name}', recipe)
        if before != recipe:
            names = [name for name in sorted({*before, *recipe}) if before.get(name) != recipe.get(name)]
            raise UserError(
                f'{grid.out} holds runs of {method.name} with another {names[0]} '
                f'({before.get(names[0], "not set")}, now {recipe.get(names[0], "not set")}); '
                f'use another --out, or remove {file} and these runs'
            )
    write_json(file, recipes)


def split_options(text: str) -> tuple[str, ...]:
    """Return --options as words, split as in a shell.

    Raises:
        UserError: a quotation mark is left open.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f'--options {shown(text)}: {shown(error)}') from None
