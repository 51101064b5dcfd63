"""One run at a time in a folder; the system lets go of it whatever ends the run."""

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
from lib.runtime.files import locked
with locked(Path(sys.argv[1])):
    print('held', flush=True)
    sys.stdin.read()
"""


def holder(folder):
    """Start a process that holds `folder`, and return it once it does."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == 'held\n'
    return process


def hold(folder):
    with lock_folder(folder):
        pass


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path):
    with holder(tmp_path) as process:
        try:
            for _ in range(2):  # being refused does not take the note of the holder away
                with pytest.raises(UserError) as caught:
                    hold(tmp_path)
                assert str(tmp_path) in str(caught.value)
                assert f'process {process.pid}' in str(caught.value)
                assert 'another NAME' in str(caught.value)
        finally:
            process.communicate('')
    hold(tmp_path)


def test_a_killed_holder_lets_go(tmp_path):
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
    hold(tmp_path)


def test_it_makes_the_folder_and_notes_the_holder(tmp_path):
    folder = tmp_path / 'a' / 'b'
    with lock_folder(folder):
        assert (folder / '.lock').read_text() == str(os.getpid())


def test_it_holds_within_one_process_too(tmp_path):
    with lock_folder(tmp_path), pytest.raises(UserError, match=f'process {os.getpid()}'):
        hold(tmp_path)
    hold(tmp_path)


def test_an_error_inside_lets_go(tmp_path):
    with pytest.raises(ValueError, match='inside'), lock_folder(tmp_path):
        raise ValueError('inside')
    hold(tmp_path)


def test_other_folders_are_free(tmp_path):
    with lock_folder(tmp_path / 'a'):
        hold(tmp_path / 'b')


def test_a_longer_note_of_an_earlier_holder_is_gone(tmp_path):
    (tmp_path / '.lock').write_text('9' * 40)
    with lock_folder(tmp_path):
        assert (tmp_path / '.lock').read_text() == str(os.getpid())
