"""The process of a script: signals become exceptions, a parent that is gone ends it, freed memory is used again."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.runtime.process import allow_open_files

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.process, pytest.mark.long]


def run_main(body, **options):
    """Start a script whose main function has this body."""
    script = f'import os, signal, sys, time\nfrom lib.commands.cli import cli_main\n{body}\ncli_main(main)'
    streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    return subprocess.Popen([sys.executable, '-c', script], cwd=REPOSITORY, text=True, **streams, **options)


def outcome(process):
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.parametrize(
    ('name', 'code', 'line'), [('SIGINT', 130, 'interrupted\n'), ('SIGTERM', 143, 'terminated (SIGTERM)\n')]
)
def test_an_exception_in_a_destructor_is_raised_again(name, code, line):
    body = f"""
class Lost:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        time.sleep(0.1)
def main():
    Lost()
    time.sleep(30)
"""
    started = time.monotonic()
    assert outcome(run_main(body)) == (code, '', line)
    assert time.monotonic() - started < 6


def test_whatever_the_exception_becomes():
    body = """
def main():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    except BaseException:
        raise ValueError('a library translates it')
"""
    assert outcome(run_main(body)) == (143, '', 'terminated (SIGTERM)\n')


@pytest.mark.slow
def test_a_cleanup_that_never_ends():
    body = """
def main():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    finally:
        time.sleep(30)
"""
    started = time.monotonic()
    assert outcome(run_main(body)) == (143, '', 'terminated (SIGTERM)\n')
    assert time.monotonic() - started < 20


def test_a_script_whose_parent_is_gone_is_terminated():
    """As a run of a grid, which is in another session."""
    body = """
def main():
    print(os.getpid(), 'RECOGNIZER_PARENT' in os.environ, flush=True)
    time.sleep(60)
"""
    parent = f"""
import os, subprocess, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from lib.runtime.process import PARENT
from tests.runtime.test_process import run_main
child = run_main({body!r}, env=os.environ | {{PARENT: str(os.getpid())}}, start_new_session=True)
print(child.stdout.readline(), flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, '-c', parent], stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    child, inherits = done.stdout.split()
    assert inherits == 'False'
    end = time.monotonic() + 5
    while is_running(int(child)):
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    with open(f'/proc/{process}/stat') as file:
        return file.read().rpartition(')')[2].split()[0] != 'Z'


def test_a_hangup_that_the_caller_ignores_is_ignored():
    body = """
def main():
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(0.2)
"""
    assert outcome(run_main(body)) == (129, '', 'ended by SIGHUP\n')
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731 - a short function of one process
    assert outcome(run_main(body, preexec_fn=ignore)) == (0, '', '')


@pytest.mark.skipif(os.name != 'posix', reason='Windows has no such limit')
@pytest.mark.parametrize(('soft', 'hard', 'expected'), [(64, 200, 200), (64, 64, 64), (1 << 17, 1 << 18, 1 << 17)])
def test_the_limit_of_open_files_is_raised_where_it_is_allowed(monkeypatch, soft, hard, expected):
    limits = [soft, hard]
    monkeypatch.setattr('resource.getrlimit', lambda _: tuple(limits))
    monkeypatch.setattr('resource.setrlimit', lambda _, given: limits.__setitem__(slice(None), given))
    allow_open_files()
    assert limits == [expected, hard]


def test_an_error_does_not_wait_for_requests_of_other_threads():
    process = run_main("""
from concurrent.futures import ThreadPoolExecutor
from lib.errors import UserError
from lib.runtime.leaving import call
def main():
    ThreadPoolExecutor(1).submit(call, lambda: time.sleep(120))
    time.sleep(0.5)
    raise UserError('a mistake')
""")
    assert outcome(process) == (2, '', 'error: a mistake\n')


KEEPS_MEMORY = """
import ctypes, resource
from lib.runtime.process import keep_freed_memory

keep_freed_memory()
libc, block, size = ctypes.CDLL(None), ctypes.c_void_p(), 8 << 20

def faults_of_a_tensor():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    libc.posix_memalign(ctypes.byref(block), 2 << 20, size)  # as torch does for huge pages
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_a_tensor()
print(max(faults_of_a_tensor() for _ in range(5)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='other C libraries have no such option')
def test_freed_memory_is_used_again_unless_the_user_has_decided():
    def faults(**variables):
        environment = {name: text for name, text in os.environ.items() if not name.startswith('MALLOC_')}
        command = [sys.executable, '-c', KEEPS_MEMORY]
        return int(
            subprocess.run(command, cwd=REPOSITORY, env=environment | variables, capture_output=True, check=True).stdout
        )

    assert faults() < 100
    assert faults(MALLOC_ARENA_MAX='2') > 1000  # pages of 4 KB
