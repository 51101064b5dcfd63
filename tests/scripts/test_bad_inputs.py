"""A user's mistake gives one error line and exit code 2; no file is written or lost."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lib.runtime.folders import lock_folder
from tests.scripts.bad_inputs import AGAIN, BEST, CONVERT, REBALANCE, ROWS, TRAIN, TRAIN_JSON, Row
from tests.scripts.in_process import run_in_process
from tests.scripts.running import REPOSITORY, TINY

LIMITED = 'tests/scripts/limit_files.py'
# Checkpoints of the tiny model have 3 MB, the other files far less.
NO_CHECKPOINT = 1_000_000


@pytest.fixture
def shop(products, tmp_path) -> Iterator[Path]:
    """The test's own folder with shop/, a copy of `products`, and recipe.yaml."""
    shutil.copytree(products, tmp_path / 'shop')
    shutil.copy(TINY, tmp_path / 'recipe.yaml')
    yield tmp_path
    shutil.rmtree(tmp_path)  # a hundred of these would fill the disk


@pytest.fixture
def folder(shop, finished) -> Path:
    """`shop` with log/, a copy of that in `finished`."""
    shutil.copytree(finished / 'log', shop / 'log')
    return shop


def snapshot(folder: Path) -> dict[str, tuple]:
    """Return {name: (size, time of change, digest)} of all files in a folder, and {name: ()} of folders.

    Cached features are left out.
    """
    found = {}
    for path in sorted(folder.rglob('*')):
        if 'features' in path.relative_to(folder).parts:
            continue
        state = ()
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            state = (status.st_size, status.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        found[path.relative_to(folder).as_posix()] = state
    return found


def without_logs_of(run: str, files: dict[str, tuple]) -> dict[str, tuple]:
    """Leave out a run folder except for its checkpoints."""
    return {
        name: state
        for name, state in files.items()
        if name.endswith('.pth') or not (name == run or name.startswith(f'{run}/'))
    }


def check_error(done: subprocess.CompletedProcess, *words: str, warns: bool = False) -> None:
    """Check for exit code 2 and one line on standard error that contains the words."""
    output = f'{done.args}\n{done.stdout}\n{done.stderr}'
    lines = done.stderr.splitlines()
    if warns:
        lines = [line for line in lines if not line.startswith('warning: ')]
    assert done.returncode == 2, output
    assert len(lines) == 1, output
    assert lines[0].startswith('error: '), output
    assert 'Traceback' not in done.stdout, output
    for word in words:
        assert word in lines[0], f'{word!r} is not in: {lines[0]}'


def check_row(row: Row, folder: Path, run: Callable[..., subprocess.CompletedProcess]) -> None:
    """Check that `run`, called with the folder, script and options, reports the mistake and changes no file."""
    row.disk(folder)
    before = snapshot(folder)
    script, *options = row.command.split()
    check_error(run(folder, script, *options), *row.words, warns=row.warns)
    after = snapshot(folder)
    if row.trains:
        name = f'log/{options[options.index("--NAME") + 1]}'
        before, after = (without_logs_of(name, files) for files in (before, after))
    assert after == before  # `executed`, which a file with code in it would write, included


def params(*, end_to_end: bool, needs_run: bool) -> list:
    return [
        pytest.param(row, id=row.name.replace(' ', '_'))
        for row in ROWS
        if (row.end_to_end, row.needs_run) == (end_to_end, needs_run)
    ]


@pytest.mark.parametrize('row', params(end_to_end=False, needs_run=False))
def test_mistake(shop, row):
    check_row(row, shop, run_in_process)


@pytest.mark.parametrize('row', params(end_to_end=False, needs_run=True))
def test_mistake_with_a_run(folder, row):
    check_row(row, folder, run_in_process)


@pytest.mark.parametrize('row', params(end_to_end=True, needs_run=False) + params(end_to_end=True, needs_run=True))
def test_mistake_end_to_end(scripts, folder, row):
    check_row(row, folder, functools.partial(scripts.run, code=None))


@pytest.mark.parametrize('command', [TRAIN, f'{TRAIN} --RESUME_MODEL last', f'{TRAIN} --OVERWRITE True'])
def test_two_runs_in_one_folder(scripts, folder, command):
    with lock_folder(folder / 'log' / 'new'):
        before = snapshot(folder)
        done = scripts.run(folder, *command.split(), code=None)
        check_error(done, f'log/new is in use by another run (process {os.getpid()})', 'NAME')
        assert snapshot(folder) == before


@pytest.mark.parametrize(
    ('limit', 'run', 'command', 'file'),
    [
        (NO_CHECKPOINT, 'log/new', TRAIN, 'log/new/last.pth'),
        (NO_CHECKPOINT, 'log/tiny', f'{AGAIN} --RESUME_MODEL last --TRAIN_MAX_EPOCH 3', 'log/tiny/'),
        (NO_CHECKPOINT, 'log_tau', f'{REBALANCE} {BEST}', 'log_tau/tiny/best_model.pth'),
        (1000, 'none', f'{CONVERT} aliproducts shop', f'{TRAIN_JSON}'),
    ],
    ids=['train', 'resume', 'tau', 'convert'],
)
def test_file_too_large(scripts, folder, limit, run, command, file):
    """With a limit on the size of files, the system refuses in the middle of a write, as on a full disk."""
    before = snapshot(folder)
    script, *options = command.split()
    done = scripts.run(folder, LIMITED, limit, REPOSITORY / script, *options, code=None)
    check_error(done, file, 'file too large')
    assert without_logs_of(run, snapshot(folder)) == without_logs_of(run, before)


# kB: full at config.yaml; at log.txt, metrics and events; at the first checkpoint; at that of epoch 2.
@pytest.mark.parametrize('size', [4, 16, 7000, *(pytest.param(size, marks=pytest.mark.slow) for size in (12, 20, 24))])
def test_no_space_left(scripts, products, small_disk, tmp_path, size):
    disk = small_disk(size)
    options = ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'new', '--LOG_ROOT', disk)
    done = scripts.run(tmp_path, 'main.py', *options, code=None)
    check_error(done, 'no space left on the device', 'earlier files are unchanged')
    left = [path.name for path in (disk / 'new').glob('.*')]
    assert left == ['.lock']  # no temporary file
    checkpoints = sorted(path.name for path in (disk / 'new').glob('*.pth'))
    assert checkpoints == (['best_model.pth', 'last.pth'] if size == 7000 else [])


@pytest.mark.process
@pytest.mark.parametrize(
    ('script', 'options', 'word'),
    [
        ('main.py', '--config none.yaml', 'none.yaml'),
        ('test.py', '--RESUME_MODEL none.pth', 'none.pth'),
        ('tau_norm.py', '--SEED x', 'SEED'),
        ('tools/convert.py', 'csv none.csv', 'none.csv'),
    ],
)
def test_mistake_from_a_cold_start(tmp_path, script, options, word):
    command = [sys.executable, str(REPOSITORY / script), *options.split()]
    check_error(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False), word)
    assert not list(tmp_path.iterdir())
