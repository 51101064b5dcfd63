"""The runs of a grid of methods and seeds: in which order, with which command, and what is left to do of each.

What is left is read from the run folders, never remembered, so a grid that was stopped anywhere goes on.
"""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from lib.builders.data import has_test_split
from lib.config.load import load_config
from lib.config.options import parse_options
from lib.config.yaml_text import read_config_file
from lib.errors import UserError
from lib.experiments.method_list import METHODS, Method
from lib.runtime.files import write_json
from lib.trainer.checkpointing.latest import checkpoints_in
from lib.trainer.checkpointing.io import read_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
# What the grid itself gives to every run.
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
    """What the user asked for.

    Attributes:
        base: a config of a data set and its recipe.
        methods: in the order of the table.
        seeds: number of seeds; they are 0, 1, ...
        out: folder of everything that is written.
        overlays: folder of the methods' configs.
        repository: folder of main.py, test.py and tau_norm.py.
        options: laid over every run, as on the command line.
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
        return self.base.stem.lower()

    def files(self, method: Method) -> list[str]:
        """Return the configs of a method. tau_norm.py reads stage 1's recipe, of which it changes nothing."""
        names = [method.name] if method.script == 'main.py' else [method.stage1, method.name]
        return [str(self.base), *(str(self.overlays / f'{name}.yaml') for name in names)]

    def config(self, method: Method) -> CfgNode:
        """Return the resolved config of a method, without what it takes over from stage 1's checkpoint.

        Raises:
            UserError: a mistake in its files, or an option that does not fit it.
        """
        # What a run is given by name later: whether there is any decides what it may be combined with.
        later = ['--RESUME_MODEL', 'stage1'] if method.stage1 else []
        later += ['--LOSS_TEACHER', 'teacher'] if method.teacher else []
        try:
            argv = ['--config', *self.files(method), *self.settings(method), *later]
            return load_config(argv, program='', description='', find_checkpoint_config=lambda *_: None).cfg
        except UserError as error:
            raise UserError(f'method {method.name} over {self.base}: {error}') from None

    def settings(self, method: Method) -> list[str]:
        """Return the options for a method. One that trains nothing goes on doing so whatever number they ask for."""
        own = read_config_file(self.files(method)[-1]).get('TRAIN.MAX_EPOCH')
        return [*self.options, *(['--TRAIN_MAX_EPOCH', '0', '--SCHEDULE_WARMUP_EPOCHS', '0'] if own == 0 else [])]

    def changed(self) -> dict[str, Any]:
        """Return the keys that the options set and that may change a result.

        Raises:
            UserError: a mistake in the options, or one that the grid itself gives.
        """
        files, values = parse_options(self.options, program='', description='', default_config='')
        taken = [name for name in values if name in _RESERVED] + ['--config'] * bool(files)
        if taken:
            raise UserError(f'--options sets {taken[0]}, which the grid gives to each of its runs itself')
        return {name: value for name, value in values.items() if not name.startswith('RUN.')}


@dataclass(frozen=True)
class Step:
    """One command of a run, and what it does, for the log."""

    verb: str
    command: list[str]


@dataclass(eq=False)
class SubRun:
    """One method with one seed.

    Attributes:
        name: <base>_<method>_<seed>, the name of its folder.
        cfg: its resolved config.
        needs: runs whose models it starts from or learns from.
        asked: False for one that only others need.
    """

    grid: Grid
    method: Method
    seed: int
    cfg: CfgNode
    needs: list['SubRun'] = field(default_factory=list)
    asked: bool = True

    @property
    def name(self) -> str:
        return f'{self.grid.label}_{self.method.name}_{self.seed}'

    @property
    def folder(self) -> Path:
        return self.grid.out / ('runs' if self.method.script == 'main.py' else 'tau') / self.name

    @property
    def model(self) -> Path:
        """The checkpoint that counts: after the last epoch, or after re-balancing."""
        return self.folder / ('last.pth' if self.method.script == 'main.py' else 'best_model.pth')

    @property
    def log(self) -> Path:
        return self.grid.out / 'logs' / f'{self.name}.txt'

    def next_step(self) -> Step | None:
        """Return what is to be done next, None when all is done."""
        if not self.is_trained():
            return self._training() if self.method.script == 'main.py' else self._rebalancing()
        return Step('test', self._command('test.py', '--RESUME_MODEL', self.model)) if self._wants_test() else None

    def is_trained(self) -> bool:
        """Whether the last epoch of its config is done (or tau chosen) and the model saved."""
        if self.method.script != 'main.py':
            return (self.folder / 'tau.json').exists() and self.model.exists()
        last = self.cfg.TRAIN.MAX_EPOCH
        if not self.model.exists() or max((line['epoch'] for line in read_metrics(self.folder)), default=0) < last:
            return False
        # A run killed between the two files is not done, whatever metrics.jsonl says.
        place = read_checkpoint(self.model).progress
        return place is not None and place.epoch >= last

    @property
    def test_metrics(self) -> Path:
        return self.model.with_name(f'{self.model.stem}_metrics.json')

    def _wants_test(self) -> bool:
        """Whether there is a test split (CIFAR's is its valid split) that this very model has not seen."""
        if self.cfg.DATASET.NAME.startswith('cifar') or not has_test_split(self.cfg):
            return False
        # Without labels there are predictions, but no metrics.
        written = [path for path in (self.test_metrics, self.model.with_suffix('.csv')) if path.exists()]
        return not any(path.stat().st_mtime_ns >= self.model.stat().st_mtime_ns for path in written)

    def _training(self) -> Step:
        start = ('--RESUME_MODEL', 'last')
        if self.method.stage1 and not checkpoints_in(self.folder):
            start = ('--RESUME_MODEL', self._stage1(), '--RESUME_MODE', 'finetune')
        if self.method.teacher:
            start += ('--LOSS_TEACHER', self._needed(self.method.teacher).model)
        return Step('train', self._command('main.py', *start))

    def _rebalancing(self) -> Step:
        # What lies there without tau.json was cut short.
        options = ('--TAU_NORM_LOG_ROOT', self.grid.out / 'tau', '--OVERWRITE', 'True')
        return Step('re-balance', self._command('tau_norm.py', '--RESUME_MODEL', self._stage1(), *options))

    def _stage1(self) -> Path:
        return self._needed(self.method.stage1).folder / self.method.start

    def _needed(self, name: str) -> 'SubRun':
        return next(run for run in self.needs if run.method.name == name)

    def _command(self, script: str, *more: object) -> list[str]:
        grid = self.grid
        own = ['--NAME', self.name, '--SEED', self.seed, '--LOG_ROOT', grid.out / 'runs', *more]
        command = [sys.executable, grid.repository / script, '--config', *grid.files(self.method)]
        return [str(part) for part in (*command, *grid.settings(self.method), *own)]


def plan_runs(grid: Grid) -> list[SubRun]:
    """Return all runs, seed by seed, each once and after those it needs.

    Raises:
        UserError: a method does not fit the base or the options.
    """
    grid.changed()
    runs: dict[tuple[str, int], SubRun] = {}
    configs: dict[str, CfgNode] = {}
    asked = {method.name for method in grid.methods}

    def add(method: Method, seed: int) -> SubRun:
        if (method.name, seed) not in runs:
            needs = [add(METHODS[name], seed) for name in method.needs]
            if method.name not in configs:
                configs[method.name] = grid.config(method)
            run = SubRun(grid, method, seed, configs[method.name], needs, method.name in asked)
            runs[method.name, seed] = run
        return runs[method.name, seed]

    for seed in range(grid.seeds):
        for method in grid.methods:
            add(method, seed)
    return list(runs.values())


def remember_recipes(grid: Grid, runs: Sequence[SubRun]) -> None:
    """Note in OUT/grid.json what each method's runs are made with.

    Raises:
        UserError: runs of another recipe lie there, whose figures would be taken for this one's.
    """
    file = grid.out / 'grid.json'
    known = json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}
    for method in {run.method.name: run.method for run in runs}.values():
        values: dict[str, Any] = {}
        for layer in (*map(read_config_file, grid.files(method)), grid.changed()):
            values.update({name: value for name, value in layer.items() if not name.startswith('RUN.')})
        recipe = json.loads(json.dumps(values))
        before = known.setdefault(f'{grid.label}_{method.name}', recipe)
        if before != recipe:
            names = [name for name in sorted({*before, *recipe}) if before.get(name) != recipe.get(name)]
            raise UserError(
                f'{grid.out} holds runs of {method.name} that were made with another {names[0]} '
                f'({before.get(names[0], "none given")}, now {recipe.get(names[0], "none given")}); '
                f'give another --out, or remove {file} and those runs'
            )
    write_json(file, known)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl; one that a crash cut short is left out."""
    file = folder / 'metrics.jsonl'
    lines = file.read_text(encoding='utf-8').splitlines() if file.exists() else []
    return list(_objects(lines))


def _objects(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def split_options(text: str) -> tuple[str, ...]:
    """Return --options as words, as a shell splits them.

    Raises:
        UserError: a quotation mark is left open.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f'--options {text!r}: {error}') from None
