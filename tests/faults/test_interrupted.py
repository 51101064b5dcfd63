"""Commands that are killed at any operation on their output files: the same command then completes them."""

import pytest

from tests.faults.commands import CASES, READ_ONLY, all_cases, make_inputs, scripts_on_disk
from tests.faults.harness import Harness
from tests.scripts.running import TINY

pytestmark = [pytest.mark.process, pytest.mark.long]


@pytest.fixture(scope='session')
def inputs(scripts, tmp_path_factory):
    """Return a folder with the inputs of all cases; read-only."""
    folder = tmp_path_factory.mktemp('inputs')
    make_inputs(folder)
    scripts.run(folder, 'tools/convert.py', 'aliproducts', 'goods', 'goods')
    scripts.run(folder, 'main.py', '--config', TINY, '--DATASET_ROOT', 'goods', '--NAME', 'tiny')
    return folder


def check_kills(harness, points):
    """Check that the command, run again after a kill at each of the points, leaves the same files."""
    faults = []
    for point in points:
        for fault in ('kill', 'tear') if point.event == 'after write' else ('kill',):
            done = harness.fail_at(point, fault)
            assert done.returncode == -9, f'{point} was not reached\n{done.stdout}\n{done.stderr}'
            again = harness.run()
            problem = again.stderr if again.returncode else harness.difference()
            if problem:
                faults.append(f'{fault} {point}: {problem.strip()}')
    assert not faults, '\n'.join(faults)


def test_all_commands_are_covered():
    assert scripts_on_disk() == CASES.keys() | READ_ONLY.keys(), 'add the command to tests/faults/commands.py'


@pytest.mark.slow
@pytest.mark.parametrize(('script', 'name'), all_cases())
def test_killed_everywhere(scripts, inputs, tmp_path, script, name):
    harness = Harness(scripts, CASES[script][name], inputs, tmp_path)
    assert harness.points, 'the command changes no file through lib.runtime.files'
    check_kills(harness, harness.points)
