"""Disks that are full or fail at any operation on output files, and system calls that are short or interrupted.

A command ends with one error line and leaves the earlier files; the same command then completes.
"""

import random
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.commands import CASES, all_cases
from tests.faults.harness import Harness
from tests.faults.outcome import contents
from tests.script_server import script_server
from tests.scripts.running import Scripts

pytestmark = [pytest.mark.process, pytest.mark.long]
ERRORS = ('ENOSPC', 'EIO', 'EDQUOT', 'EROFS')
_TEMPORARY = re.compile(r'\..*\.tmp(\.\w+)?')
# Files that grow, and stores that a later command resumes.
_GROWING = re.compile(r'.*(log\.txt|metrics\.jsonl|events\.out\.tfevents.*|\.partial(/.*)?|/features/.*)')


def error_points(harness):
    """Return one point of each kind for each file."""
    first = {}
    for point in harness.all_points:
        if point.event.startswith('before'):
            first.setdefault((point.event, point.name), point)
    return list(first.values())


def check_failed(harness, done):
    """Return the fault of a command that met an error; '' if it ended as it should."""
    # Warnings, and the line before the demo data is drawn.
    lines = [line for line in done.stderr.splitlines() if not line.startswith(('warning: ', 'drawing '))]
    if done.returncode != 2 or len(lines) != 1 or not lines[0].startswith('error: '):
        return f'exit code {done.returncode}, {done.stderr[-600:]}'
    found = contents(harness.folder)
    # Where the renaming of files that switch together fails, the next command renames the rest.
    unfinished = {name.rpartition('/')[0] for name in found if name.endswith('.unfinished.json')}
    temporary = [name for name in found if _TEMPORARY.fullmatch(name.rpartition('/')[2])]
    temporary = [name for name in temporary if name.rpartition('/')[0] not in unfinished]
    if temporary:
        return f'left over: {temporary[:5]}'
    damaged = [
        name
        for name, digest in harness.earlier.items()
        if found.get(name) not in (digest, harness.expected.get(name))
        and not _GROWING.fullmatch(name)
        # OVERWRITE renames a folder before the new files are written.
        and (name in found or digest not in found.values())
    ]
    return f'damaged: {", ".join(damaged[:5])}' if damaged else ''


def check_completes(harness, done):
    """Return the fault of a command that met an error, or of the same command after it; '' if there is none."""
    if done.returncode:
        problem = check_failed(harness, done)
        if problem:
            return problem
    elif not harness.difference():
        return ''
    # A command may work to its end without a cache that it cannot write, or a folder that it cannot remove.
    return harness.completes()


def check_errors(harness, dice, points):
    """Check errors at each of the points, and that the command completes afterwards."""
    faults = []
    for point in points:
        error = dice.choice(ERRORS)
        problem = check_completes(harness, harness.fail_at(point, error))
        if problem:
            faults.append(f'{error} {point}: {problem}')
    assert not faults, '\n'.join(faults)


# Commands of a second; the slow tests have all of them.
SAMPLE = [('tools/get_dataset.py', 'archive'), ('tau_norm.py', 'overwrite')]


@pytest.mark.parametrize(('script', 'name'), SAMPLE)
def test_errors(scripts, inputs, tmp_path, seed, script, name):
    dice = random.Random(seed)
    harness = Harness(scripts, CASES[script][name], inputs, tmp_path)
    check_errors(harness, dice, [dice.choice(error_points(harness))])


@pytest.mark.slow
@pytest.mark.parametrize(('script', 'name'), all_cases())
def test_errors_of_all_commands(scripts, inputs, tmp_path, seed, script, name):
    harness = Harness(scripts, CASES[script][name], inputs, tmp_path)
    dice, points = random.Random(seed), error_points(harness)
    check_errors(harness, dice, dice.sample(points, min(len(points), 12)))


# The fake scripts of the grid write no files atomically.
DISK_CASES = [case for case in all_cases() if case[0] != 'tools/grid.py']
# Bytes that a file may have: less and more than most files of these commands.
LIMITS = (5_000, 20_000, 200_000, 1_500_000)


@pytest.mark.slow
@pytest.mark.parametrize(('script', 'name'), DISK_CASES)
def test_limited_files(scripts, inputs, tmp_path, seed, script, name):
    """A file is written up to the limit (ulimit -f), and then fails."""
    harness = Harness(scripts, CASES[script][name], inputs, tmp_path)
    faults = []
    for limit in random.Random(seed).sample(LIMITS, 2):
        harness.reset()
        problem = check_completes(harness, harness.run({'limit': limit}))
        if problem:
            faults.append(f'limit {limit}: {problem}')
    assert not faults, '\n'.join(faults)


def check_full_disk(harness, disk, free):
    """Fill the disk up to `free` bytes, run the command, and run it again on an empty one."""
    harness.reset()
    ballast = disk / 'ballast'
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - free))
    done = harness.run()
    ballast.unlink()
    return check_completes(harness, done)


@pytest.mark.slow
@pytest.mark.parametrize(('script', 'name'), DISK_CASES)
def test_full_disk(scripts, inputs, small_disk, seed, script, name):
    disk = small_disk(60_000)
    harness = Harness(scripts, CASES[script][name], inputs, disk)
    faults = []
    for free in random.Random(seed).sample((0, 16_000, 200_000, 1_500_000), 2):
        problem = check_full_disk(harness, disk, free)
        if problem:
            faults.append(f'{free} bytes free: {problem}')
    assert not faults, '\n'.join(faults)


@pytest.mark.slow
@pytest.mark.parametrize(('script', 'name'), all_cases())
def test_interrupted_calls(scripts, inputs, tmp_path, script, name):
    """A signal every 2 ms, whose handler does nothing, interrupts system calls (EINTR)."""
    harness = Harness(scripts, CASES[script][name], inputs, tmp_path)
    harness.reset()
    harness.run({'signals': 0.002}, code=0)
    assert harness.difference() == ''


@pytest.fixture(scope='module')
def short_io(tmp_path_factory):
    """Scripts whose reads and writes of files are short or interrupted."""
    compiler = shutil.which('cc')
    if compiler is None or sys.platform != 'linux':
        pytest.skip('needs a C compiler on Linux')
    folder = tmp_path_factory.mktemp('short')
    library = folder / 'short_io.so'
    source = Path(__file__).with_name('short_io.c')
    subprocess.run([compiler, '-shared', '-fPIC', '-o', str(library), str(source), '-ldl'], check=True)
    with script_server({'LD_PRELOAD': str(library)}) as address, closing(Scripts(address, folder)) as scripts:
        yield scripts


@pytest.mark.slow
@pytest.mark.parametrize(('script', 'name'), all_cases())
def test_short_reads_and_writes(scripts, short_io, inputs, tmp_path, script, name):
    harness = Harness(scripts, CASES[script][name], inputs, tmp_path)
    harness.reset()
    harness.scripts = short_io
    harness.run(code=0)
    assert harness.difference() == ''
