"""What users get wrong is one clear line, exit code 2, and nothing written or lost."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.runtime.files import lock_folder
from tests.scripts.bad_inputs import AGAIN, BEST, CONVERT, REBALANCE, ROWS, TRAIN, TRAIN_JSON
from tests.scripts.running import REPOSITORY, TINY

LIMITED = 'tests/scripts/limit_files.py'
# Checkpoints of the tiny model have 3 MB, the other files far less.
NO_CHECKPOINT = 1_000_000


@pytest.fixture
def folder(products, finished, tmp_path) -> Iterator[Path]:
    """A folder of the test's own to spoil: shop/ as `products`, log/ as in `finished`, recipe.yaml."""
    shutil.copytree(products, tmp_path / 'shop')
    shutil.copytree(finished / 'log', tmp_path / 'log')
    shutil.copy(TINY, tmp_path / 'recipe.yaml')
    yield tmp_path
    shutil.rmtree(tmp_path)  # a hundred of these would fill the disk


def snapshot(folder: Path) -> dict[str, tuple]:
    """Return {name: (size, time of change, digest)} of everything in a folder; folders are names alone.

    Features, which are kept for whoever looks next, are left out.
    """
    found = {}
    for path in sorted(folder.rglob('*')):
        if 'features' in path.relative_to(folder).parts:
            continue
        what = ()
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            what = (status.st_size, status.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        found[path.relative_to(folder).as_posix()] = what
    return found


def without_words_of(run: str, found: dict[str, tuple]) -> dict[str, tuple]:
    """Leave out a run folder, but for its checkpoints."""
    return {
        name: what
        for name, what in found.items()
        if name.endswith('.pth') or not (name == run or name.startswith(f'{run}/'))
    }


def check_error(done: subprocess.CompletedProcess, *words: str, warns: bool = False) -> None:
    """Check that an outcome is exit code 2 and one line on standard error, which holds the words."""
    said = f'{done.args}\n{done.stdout}\n{done.stderr}'
    lines = done.stderr.splitlines()
    if warns:
        lines = [line for line in lines if not line.startswith('warning: ')]
    assert done.returncode == 2, said
    assert len(lines) == 1, said
    assert lines[0].startswith('error: '), said
    assert 'Traceback' not in done.stdout, said
    for word in words:
        assert word in lines[0], f'{word!r} is not in: {lines[0]}'


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.name.replace(' ', '_'))
def test_bad_input(scripts, folder, row):
    row.disk(folder)
    before = snapshot(folder)
    script, *options = row.command.split()
    check_error(scripts.run(folder, script, *options, code=None), *row.words, warns=row.warns)
    after = snapshot(folder)
    if row.trains:
        run = f'log/{options[options.index("--NAME") + 1]}'
        before, after = (without_words_of(run, found) for found in (before, after))
    assert after == before  # `executed` of a file with code in it would show here, too


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
        (NO_CHECKPOINT, 'log/new', TRAIN, 'log/new/best_model.pth'),
        (NO_CHECKPOINT, 'log/tiny', f'{AGAIN} --RESUME_MODEL last --TRAIN_MAX_EPOCH 3', 'log/tiny/'),
        (NO_CHECKPOINT, 'log_tau', f'{REBALANCE} {BEST}', 'log_tau/tiny/best_model.pth'),
        (1000, 'none', f'{CONVERT} aliproducts shop', f'{TRAIN_JSON}'),
    ],
    ids=['train', 'go on', 'tau', 'convert'],
)
def test_file_too_large(scripts, folder, limit, run, command, file):
    """A limit on the size of files, which the system answers as it does a full disk: in the middle of a write."""
    before = snapshot(folder)
    script, *options = command.split()
    done = scripts.run(folder, LIMITED, limit, REPOSITORY / script, *options, code=None)
    check_error(done, file, 'file too large')
    assert without_words_of(run, snapshot(folder)) == without_words_of(run, before)


# Full when config.yaml is written, with log.txt, metrics and events, with the first checkpoint, with that of epoch 2.
@pytest.mark.parametrize('size', [4, 12, 16, 20, 24, 8000])
def test_no_space_left(scripts, products, small_disk, tmp_path, size):
    disk = small_disk(size)
    options = ('--config', TINY, '--DATASET_ROOT', products, '--NAME', 'new', '--LOG_ROOT', disk)
    done = scripts.run(tmp_path, 'main.py', *options, code=None)
    check_error(done, 'no space left on the device', 'earlier files are as they were')
    left = [path.name for path in (disk / 'new').glob('.*')]
    assert left == ['.lock']  # no half of a file
    checkpoints = sorted(path.name for path in (disk / 'new').glob('*.pth'))
    assert checkpoints == (['best_model.pth', 'last.pth'] if size == 8000 else [])


@pytest.mark.parametrize(
    ('script', 'options', 'word'),
    [
        ('main.py', '--config none.yaml', 'none.yaml'),
        ('test.py', '--RESUME_MODEL none.pth', 'none.pth'),
        ('tau_norm.py', '--SEED x', 'SEED'),
        ('tools/convert.py', 'csv none.csv', 'none.csv'),
    ],
)
def test_in_a_process_of_its_own(tmp_path, script, options, word):
    command = [sys.executable, str(REPOSITORY / script), *options.split()]
    check_error(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False), word)
    assert not list(tmp_path.iterdir())
