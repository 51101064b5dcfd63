"""The rank whose process has ended, as the others see it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lib.distributed import lost_rank
from lib.distributed.lost_rank import LostRank, describe_lost_rank, find_lost_rank, own_process, remember_processes

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != 'linux', reason='processes are seen through /proc'),
]
HERE = own_process()[0]


@pytest.fixture
def child(monkeypatch):
    """A process that sleeps, the second of three ranks; the third is on another machine."""
    monkeypatch.setattr(lost_rank, '_processes', [])
    process = subprocess.Popen(['sleep', '60'])
    remember_processes([own_process(), (HERE, process.pid), ('another machine', process.pid + 1)])
    yield process
    process.kill()
    process.wait()


def test_all_are_alive(child):
    assert find_lost_rank(0.05) is None
    assert describe_lost_rank().startswith('another rank has ended')


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSEGV])
def test_a_signal(child, number):
    child.send_signal(number)
    assert find_lost_rank() == LostRank(1, number)


def test_its_exit_code_is_collected_already(child):
    child.kill()
    child.wait()
    assert find_lost_rank() == LostRank(1, None)
    assert describe_lost_rank() == 'rank 1 has ended, so this one ends, too; see the error line of that rank'


def test_an_exit(monkeypatch):
    monkeypatch.setattr(lost_rank, '_processes', [(HERE, 0), own_process()])
    process = subprocess.Popen([sys.executable, '-S', '-c', 'raise SystemExit(2)'])
    lost_rank._processes[0] = (HERE, process.pid)
    assert find_lost_rank(30) == LostRank(0, 0)
    assert describe_lost_rank() == 'rank 0 has ended, so this one ends, too; see the error line of that rank'
    process.wait()


@pytest.mark.parametrize(
    ('number', 'count', 'line'),
    [
        (9, 2, 'rank 1 was killed (SIGKILL), because memory ran out: the kernel has ended 2 processes (oom_kill), '),
        (
            None,
            1,
            'rank 1 was killed (SIGKILL), because memory ran out: the kernel has ended 1 process (oom_kill), so ',
        ),
        (9, None, 'rank 1 was killed (SIGKILL), most likely because memory ran out, so this one ends, too; a '),
        (9, 0, 'rank 1 was killed (SIGKILL), so this one ends, too; the kernel counts no lack of memory (oom_kill), '),
        (11, 5, 'rank 1 was ended by SIGSEGV, so this one ends, too'),
        (0, 5, 'rank 1 has ended, so this one ends, too; see the error line of that rank'),
        (None, 0, 'rank 1 has ended, so this one ends, too; see the error line of that rank'),
    ],
)
def test_lines(monkeypatch, number, count, line):
    monkeypatch.setattr(lost_rank, 'find_lost_rank', lambda: LostRank(1, number))
    monkeypatch.setattr(lost_rank, 'num_killed', lambda: count)
    monkeypatch.setattr('lib.runtime.memory_kills.num_killed', lambda: count)
    assert describe_lost_rank().startswith(line)


def test_another_system(monkeypatch, tmp_path):
    monkeypatch.setattr(lost_rank, '_PROC', tmp_path)
    assert own_process() == ('', os.getpid())
    remember_processes([own_process(), ('', 1)])
    started = time.monotonic()
    assert find_lost_rank() is None
    assert time.monotonic() - started < 1
