"""Atomic writes: a file has either its old content or its new content."""

import errno
import json
import os

import pytest

from lib.runtime import files
from lib.runtime.files import replace_atomically, write_bytes, write_json, write_text


def names(folder):
    return sorted(os.listdir(folder))


def test_written_content_is_read_back(tmp_path):
    write_bytes(tmp_path / 'a.bin', b'\0\xff')
    write_text(tmp_path / 'a.txt', 'ü\nline\n')
    write_json(str(tmp_path / 'a.json'), {'name': 'ü', 'numbers': [1, 0.5, None]})
    assert (tmp_path / 'a.bin').read_bytes() == b'\0\xff'
    assert (tmp_path / 'a.txt').read_bytes() == 'ü\nline\n'.encode()
    text = (tmp_path / 'a.json').read_text(encoding='utf-8')
    assert json.loads(text) == {'name': 'ü', 'numbers': [1, 0.5, None]}
    assert 'ü' in text
    assert names(tmp_path) == ['a.bin', 'a.json', 'a.txt']


def test_bytes_of_paths_that_are_not_utf8_are_escaped(tmp_path):
    folder = b'caf\xe9'.decode('utf-8', 'surrogateescape')
    write_json(tmp_path / 'a.json', {'folder': folder})
    assert json.loads((tmp_path / 'a.json').read_text(encoding='utf-8')) == {'folder': folder}
    write_text(tmp_path / 'a.html', f'<p>{folder}</p>')
    assert (tmp_path / 'a.html').read_text(encoding='utf-8') == r'<p>caf\udce9</p>'


def test_an_old_file_is_replaced(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('a longer old text')
    write_text(path, 'new')
    assert path.read_text() == 'new'
    assert names(tmp_path) == ['a.txt']


def test_folders_are_created(tmp_path):
    write_text(tmp_path / 'x' / 'y' / 'a.txt', 'text')
    assert (tmp_path / 'x' / 'y' / 'a.txt').read_text() == 'text'


def test_the_new_file_is_visible_only_when_it_is_complete(tmp_path):
    path = tmp_path / 'plot.png'
    path.write_bytes(b'old')
    with replace_atomically(path) as temporary:
        temporary.write_bytes(b'half')
        assert path.read_bytes() == b'old'
        assert temporary.parent == path.parent  # a rename does not cross file systems
        assert temporary.suffix == '.png'  # writers select their format by it
        temporary.write_bytes(b'whole')
    assert path.read_bytes() == b'whole'
    assert not temporary.exists()


@pytest.mark.parametrize('error', [ValueError('x'), OSError(errno.ENOSPC, 'No space left'), KeyboardInterrupt()])
@pytest.mark.parametrize('old', [b'old', None])
def test_a_failure_keeps_the_old_file_and_removes_the_temporary_one(tmp_path, error, old):
    path = tmp_path / 'a.bin'
    if old:
        path.write_bytes(old)

    def fail():
        with replace_atomically(path) as temporary:
            temporary.write_bytes(b'half')
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(tmp_path) == (['a.bin'] if old else [])
    assert not old or path.read_bytes() == old


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_disk_error_at_the_end_keeps_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / 'a.txt'
    path.write_text('old')

    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(OSError, match='No space left'):
        write_text(path, 'new')
    monkeypatch.undo()
    assert path.read_text() == 'old'
    assert names(tmp_path) == ['a.txt']


def test_content_is_synced_before_the_rename(tmp_path, monkeypatch):
    """fsync, rename, fsync of the folder, in this order."""
    done = []
    for step in ('fsync', 'replace'):
        original = getattr(os, step)
        monkeypatch.setattr(
            files.os, step, lambda *a, step=step, original=original: (done.append(step), original(*a))[1]
        )
    write_text(tmp_path / 'a.txt', 'text')
    assert done == (['fsync', 'replace'] if os.name == 'nt' else ['fsync', 'replace', 'fsync'])


def test_values_that_json_cannot_hold_write_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / 'a.json', {'x': object()})
    assert names(tmp_path) == []


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(FileNotFoundError), replace_atomically(path):
        pass
    assert path.read_text() == 'old'
