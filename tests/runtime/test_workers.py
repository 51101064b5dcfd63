"""run_in_processes: results, errors, and processes that never outlive the main process."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lib.errors import UserError
from lib.runtime.workers import run_in_processes

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.skipif('PYTEST_XDIST_WORKER' not in os.environ, reason='the tests run in one process')
def test_parallel_tests_have_one_thread_each():
    """tests/conftest.py sets the variable before torch is imported; threads of several workers would wait for cores."""
    assert torch.get_num_threads() == int(os.environ['OMP_NUM_THREADS'])


@dataclass(frozen=True)
class Double:
    """Doubles numbers in two steps; other tasks make it fail."""

    def __call__(self, task, progress):
        for _ in range(2):
            progress(1)
        if task == 'user':
            raise UserError('a mistake')
        if task == 'disk':
            raise OSError(28, 'No space left on device', 'a file')
        if task == 'bug':
            raise KeyError('a bug')
        if task == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * task


@dataclass(frozen=True)
class Slow:
    """Runs forever, with a file that exists as long as it runs; SIGTERM removes the file."""

    folder: Path

    def __call__(self, task, progress):
        path = self.folder / str(os.getpid())
        path.touch()
        try:
            while True:
                time.sleep(0.01)
                progress(1)
        finally:
            path.unlink()


@pytest.mark.process
@pytest.mark.parametrize('num_workers', [0, 1, 3])
def test_every_task_is_done_once(num_workers):
    steps = []
    results = run_in_processes(Double(), range(7), num_workers=num_workers, progress=steps.append)
    assert sorted(results) == [0, 2, 4, 6, 8, 10, 12]
    assert steps == [1] * 14


@pytest.mark.parametrize('num_workers', [0, 2])
def test_no_tasks(num_workers):
    assert list(run_in_processes(Double(), [], num_workers=num_workers, progress=print)) == []


@pytest.mark.process
def test_errors_are_raised_in_the_main_process():
    with pytest.raises(UserError, match=r'^a mistake$'):
        list(run_in_processes(Double(), [1, 'user', 2], num_workers=2, progress=ignore))
    with pytest.raises(OSError, match='No space') as caught:
        list(run_in_processes(Double(), ['disk'], num_workers=1, progress=ignore))
    assert (caught.value.errno, caught.value.filename) == (28, 'a file')
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*KeyError: 'a bug'"):
        list(run_in_processes(Double(), ['bug'], num_workers=1, progress=ignore))


def ignore(_: int) -> None:
    pass


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_a_killed_process_is_an_error():
    with pytest.raises(UserError, match=r'was killed.*--RUN_NUM_WORKERS'):
        list(run_in_processes(Double(), [1, 'kill'], num_workers=1, progress=ignore))


class StopTest(Exception):
    pass


@pytest.mark.process
def test_running_tasks_are_terminated(tmp_path):
    def stop(_: int) -> None:
        if len(list(tmp_path.iterdir())) == 2:
            raise StopTest

    with pytest.raises(StopTest):
        list(run_in_processes(Slow(tmp_path), [1, 2], num_workers=2, progress=stop))
    assert not list(tmp_path.iterdir())


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_processes_end_with_the_main_process(tmp_path):
    command = [sys.executable, '-c', 'import sys; from pathlib import Path\n'
               'from tests.runtime.test_workers import Slow, ignore\n'
               'from lib.runtime.workers import run_in_processes\n'
               'list(run_in_processes(Slow(Path(sys.argv[1])), [1, 2], num_workers=2, progress=ignore))',
               str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, cwd=REPOSITORY)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    process.kill()
    process.wait()
    wait_until(lambda: not list(tmp_path.iterdir()))


def wait_until(done) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)
