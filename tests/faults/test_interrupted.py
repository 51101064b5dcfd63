"""Commands that are killed at any operation on their output files: the same command then completes them."""

import random

import pytest

from tests.faults.commands import CASES, ENDLESS, READ_ONLY, Case, all_cases, scripts_on_disk
from tests.faults.harness import Harness

pytestmark = [pytest.mark.process, pytest.mark.long]


def check_kills(harness, points):
    """Check that the command, run again after a kill at each of the points, leaves the same files."""
    faults = []
    for point in points:
        for fault in ('kill', 'tear') if point.may_tear else ('kill',):
            done = harness.fail_at(point, fault)
            assert done.returncode == -9, f'{point} was not reached\n{done.stdout}\n{done.stderr}'
            problem = harness.completes()
            if problem:
                faults.append(f'{fault} {point}: {problem}')
    assert not faults, '\n'.join(faults)


def test_all_commands_are_covered():
    assert scripts_on_disk() == CASES.keys() | READ_ONLY.keys() | ENDLESS, 'add the command to tests/faults/commands.py'


# Commands of a second; the slow test has all of them.
SAMPLE = [('tools/convert.py', 'append'), ('tools/pack.py', 'copy'), ('test.py', 'split')]


@pytest.mark.parametrize(('script', 'name'), SAMPLE)
def test_killed(scripts, inputs, tmp_path, seed, script, name):
    harness = Harness(scripts, CASES[script][name], inputs, tmp_path)
    check_kills(harness, [random.Random(seed).choice(harness.points)])


@pytest.mark.slow
@pytest.mark.parametrize(('script', 'name'), all_cases())
def test_killed_everywhere(scripts, inputs, tmp_path, script, name):
    harness = Harness(scripts, CASES[script][name], inputs, tmp_path)
    assert harness.points, 'the command changes no file through lib.runtime.files'
    check_kills(harness, harness.kill_points())


@pytest.mark.parametrize('script', READ_ONLY)
def test_read_only_commands_write_nothing(scripts, inputs, tmp_path, script):
    harness = Harness(scripts, Case((script, *READ_ONLY[script])), inputs, tmp_path)
    assert harness.done.stdout
    assert not harness.all_points
    assert harness.expected == harness.earlier
