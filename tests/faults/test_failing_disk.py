"""Disks that are full or fail, and system calls that are interrupted, at any operation on output files.

A command ends with one error line and leaves the earlier files; the same command then completes.
"""

import random
import re

import pytest

from tests.faults.commands import CASES, all_cases
from tests.faults.harness import Harness
from tests.faults.outcome import contents
from tests.faults.test_interrupted import SAMPLE

pytestmark = [pytest.mark.process, pytest.mark.long]
ERRORS = ('ENOSPC', 'EIO', 'EDQUOT', 'EROFS')
# Temporary files, and the journal of files that switch together.
_TEMPORARY = re.compile(r'\..*\.tmp(\.\w+)?|\.unfinished\.json')
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
    lines = [line for line in done.stderr.splitlines() if not line.startswith('warning: ')]
    if done.returncode != 2 or len(lines) != 1 or not lines[0].startswith('error: '):
        return f'exit code {done.returncode}, {done.stderr[-600:]}'
    found = contents(harness.folder)
    temporary = [name for name in found if _TEMPORARY.fullmatch(name.rpartition('/')[2])]
    if temporary:
        return f'left over: {temporary[:5]}'
    for name, digest in harness.earlier.items():
        if found.get(name) not in (digest, harness.expected.get(name)) and not _GROWING.fullmatch(name):
            return f'{name} is damaged'
    return ''


def check_errors(harness, dice, points):
    """Check errors at each of the points, and that the command completes afterwards."""
    faults = []
    for point in points:
        error = dice.choice(ERRORS)
        done = harness.fail_at(point, error)
        # A command may ignore that it cannot write a cache, or that it cannot remove a folder.
        problem = '' if done.returncode == 0 else check_failed(harness, done)
        if not problem:
            again = harness.run_again()
            problem = again.stderr if again.returncode else harness.difference()
        if problem:
            faults.append(f'{error} {point}: {problem.strip()}')
    assert not faults, '\n'.join(faults)


@pytest.mark.parametrize(('script', 'name'), SAMPLE)
def test_errors(scripts, inputs, tmp_path, seed, script, name):
    dice = random.Random(seed)
    harness = Harness(scripts, CASES[script][name], inputs, tmp_path)
    check_errors(harness, dice, dice.sample(error_points(harness), 2))


@pytest.mark.slow
@pytest.mark.parametrize(('script', 'name'), all_cases())
def test_errors_everywhere(scripts, inputs, tmp_path, seed, script, name):
    harness = Harness(scripts, CASES[script][name], inputs, tmp_path)
    check_errors(harness, random.Random(seed), error_points(harness))
