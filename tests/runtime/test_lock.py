"""lock_folder: one process per folder; the lock is released when the process ends, even by a kill."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.errors import UserError
from lib.runtime.files import lock_folder

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from lib.runtime.files import lock_folder
with lock_folder(Path(sys.argv[1])):
    print('held', flush=True)
    sys.stdin.read()
"""


def holder(folder):
    """Start a process that locks `folder`, and return it when it has the lock."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'held\n'
    return process


def hold(folder):
    with lock_folder(folder):
        pass


@pytest.mark.process
def test_a_second_process_gets_an_error_with_the_id_of_the_first(tmp_path):
    with holder(tmp_path) as process:
        try:
            for _ in range(2):  # a failed attempt does not remove the process id
                with pytest.raises(UserError) as caught:
                    hold(tmp_path)
                assert str(tmp_path) in str(caught.value)
                assert f'process {process.pid}' in str(caught.value)
                assert 'another NAME' in str(caught.value)
        finally:
            process.communicate('')
    hold(tmp_path)


@pytest.mark.process
def test_a_kill_releases_the_lock(tmp_path):
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
    hold(tmp_path)


def test_folder_is_created_and_holds_the_process_id(tmp_path):
    folder = tmp_path / 'a' / 'b'
    with lock_folder(folder):
        assert (folder / '.lock').read_text() == str(os.getpid())


def test_lock_also_applies_within_one_process(tmp_path):
    with lock_folder(tmp_path), pytest.raises(UserError, match=f'process {os.getpid()}'):
        hold(tmp_path)
    hold(tmp_path)


def test_an_exception_releases_the_lock(tmp_path):
    with pytest.raises(ValueError, match='inside'), lock_folder(tmp_path):
        raise ValueError('inside')
    hold(tmp_path)


def test_other_folders_can_be_locked(tmp_path):
    with lock_folder(tmp_path / 'a'):
        hold(tmp_path / 'b')


def test_a_longer_process_id_is_overwritten(tmp_path):
    (tmp_path / '.lock').write_text('9' * 40)
    with lock_folder(tmp_path):
        assert (tmp_path / '.lock').read_text() == str(os.getpid())
