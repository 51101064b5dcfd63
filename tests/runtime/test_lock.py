"""lock_folder: one process per folder; the lock is released when the process ends, even by a kill."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.errors import UserError
from lib.runtime import locks
from lib.runtime.folders import fresh_folder, has_content, lock_folder
from lib.runtime.locks import removed_lock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from lib.runtime.folders import lock_folder
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


def test_a_lock_of_another_user_that_can_only_be_read(tmp_path, monkeypatch):
    """Root may write anything, so the error of the system is simulated."""
    (tmp_path / '.lock').write_text('123')
    system_open = os.open

    def read_only(path, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError(13, 'Permission denied', path)
        return system_open(path, flags, *mode)

    monkeypatch.setattr(os, 'open', read_only)
    with lock_folder(tmp_path), pytest.raises(UserError, match='process 123'):
        hold(tmp_path)
    hold(tmp_path)
    with pytest.raises(PermissionError) as caught:
        hold(tmp_path / 'none')
    assert caught.value.filename == tmp_path / 'none' / '.lock'


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch, number):
    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', refuse)
    for lock in (lock_folder(tmp_path), removed_lock(tmp_path / 'x.lock', 0)):
        with pytest.raises(UserError, match='this file system has no locks'), lock:
            pass


@pytest.mark.parametrize('kind', ['link', 'pipe', 'folder'])
def test_no_other_file_is_opened_as_a_lock(tmp_path, kind):
    path, other = tmp_path / '.lock', tmp_path / 'other'
    other.write_text('content')
    {'link': lambda: path.symlink_to(other), 'pipe': lambda: os.mkfifo(path), 'folder': path.mkdir}[kind]()
    with pytest.raises(UserError, match='is needed as a lock file'):
        hold(tmp_path)
    assert other.read_text() == 'content'


def test_a_folder_that_is_renamed_meanwhile_is_not_locked(tmp_path, monkeypatch):
    """Its lock is then that of the renamed folder, whose owner may be gone: the new folder is locked."""
    folder, times = tmp_path / 'run', []
    system_acquire = locks.acquire

    def acquire_late(file, path):
        if not times:
            folder.rename(tmp_path / 'run_old')
        times.append(path)
        return system_acquire(file, path)

    monkeypatch.setattr(locks, 'acquire', acquire_late)
    with lock_folder(folder):
        assert (folder / '.lock').read_text() == str(os.getpid())
    assert len(times) == 2
    assert (tmp_path / 'run_old' / '.lock').read_text() == ''


def test_a_folder_that_is_renamed_before_its_lock_is_opened(tmp_path, monkeypatch):
    folder, opened = tmp_path / 'run', []
    system_open = locks.open_lock

    def open_late(path):
        if not opened:
            folder.rename(tmp_path / 'run_old')
        opened.append(path)
        return system_open(path)

    monkeypatch.setattr(locks, 'open_lock', open_late)
    hold(folder)
    assert len(opened) == 2


def test_a_result_is_renamed_while_it_is_locked(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'result').touch()
    with lock_folder(folder), pytest.raises(UserError, match='in use'), fresh_folder(folder, 'NAME', lambda: True):
        pass
    with fresh_folder(folder, 'NAME', lambda: has_content(folder)):
        assert not has_content(folder)
    assert (tmp_path / 'run_old' / 'result').exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['run', 'run_old']


def test_a_longer_process_id_is_overwritten(tmp_path):
    (tmp_path / '.lock').write_text('9' * 40)
    with lock_folder(tmp_path):
        assert (tmp_path / '.lock').read_text() == str(os.getpid())
