"""Sets of files: all are old or all are new, after a kill before or after any operation and after any error."""

import errno
import json
import os
import socket
import time
from contextlib import suppress

import pytest

from lib.errors import UserError
from lib.runtime import files, temporary
from lib.runtime.files import (
    completed,
    file_exists,
    finish_set,
    remove_leftovers,
    replace_atomically,
    replace_together,
    temporary_folder,
    wait_for_lock,
    write_json,
    write_text,
)
from lib.runtime.folders import has_content, holds_others, lock_folder
from lib.runtime.temporary import is_abandoned, is_temporary, temporary_path

OLD, NEW = ({name: f'{age} {name}' for name in ('a.json', 'b.txt', 'c')} for age in ('old', 'new and longer'))


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Syncing takes most of the time and matters only when the machine fails."""
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)
    monkeypatch.setattr(files, 'on_operation', None)


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def write_set(folder, values=NEW):
    with replace_together(folder):
        for name, text in values.items():
            write_text(folder / name, text)


def in_a_process(function, *arguments):
    """Run the function in a fork and return its exit code: -9 if it was killed, as by SIGKILL."""
    child = os.fork()
    if not child:
        try:
            function(*arguments)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_operation(number, fault):
    """Install a hook that calls `fault` at the operation of this number, from 0."""
    left = [number]

    def hook(event, path):
        if not left[0]:
            fault()
        left[0] -= 1

    files.on_operation = hook


def kill_at(number, folder):
    at_operation(number, lambda: os.kill(os.getpid(), 9))
    write_set(folder)


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize('is_first', [True, False])
def test_a_kill_at_any_operation_leaves_the_old_files_or_the_new_ones(tmp_path, is_first):
    """`is_first`: there are no old files."""
    number, outcomes = 0, []
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        if not is_first:
            for name, text in OLD.items():
                (folder / name).write_text(text)
        code = in_a_process(kill_at, number, folder)
        remove_leftovers(folder)
        outcomes.append(content(folder) == NEW)
        assert outcomes[-1] or content(folder) == ({} if is_first else OLD), number
        write_set(folder)
        assert content(folder) == NEW
        if code == 0:
            break
        assert code == -9
        number += 1
    assert number > 20
    assert outcomes == sorted(outcomes)  # first old, then new: once the journal is there
    assert 0 < sum(outcomes) < len(outcomes)


@pytest.mark.process
def test_files_that_are_completed_for_a_killed_command_are_known(tmp_path):
    """So that the same command may write them again; those that this process has written are not among them."""
    write_set(tmp_path / 'own')
    assert (tmp_path / 'own' / 'c').absolute() not in completed
    (tmp_path / 'killed').mkdir()
    number = next(
        number for number in range(40) if in_a_process(kill_at, number, tmp_path / 'killed') == -9
        and (tmp_path / 'killed' / '.unfinished.json').exists()
    )  # fmt: skip
    assert number > 0
    assert (tmp_path / 'killed' / 'c').absolute() not in completed
    assert file_exists(tmp_path / 'killed' / 'c')
    assert (tmp_path / 'killed' / 'c').absolute() in completed


@pytest.mark.long
@pytest.mark.parametrize('code', ['ENOSPC', 'EINTR'])
def test_an_error_at_any_operation_leaves_the_old_files_or_the_new_ones(tmp_path, code):
    def fail():
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    for number in range(200):
        folder = tmp_path / str(number)
        write_set(folder, OLD)
        at_operation(number, fail)
        with suppress(OSError):
            write_set(folder)
            break
        files.on_operation = None
        finish_set(folder)
        assert content(folder) in (OLD, NEW), number
        write_set(folder)
        assert content(folder) == NEW
    assert number > 20


def test_an_exception_leaves_the_old_files(tmp_path):
    write_set(tmp_path, OLD)

    def fail():
        with replace_together(tmp_path):
            write_text(tmp_path / 'a.json', 'new')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert content(tmp_path) == OLD
    write_text(tmp_path / 'a.json', 'alone')  # no set is open any more
    assert content(tmp_path) == {**OLD, 'a.json': 'alone'}


def test_within_the_block_the_old_files_are_there(tmp_path):
    """Also in sets within the set; the last content of a file counts; caches and other folders are written at once."""
    write_set(tmp_path, OLD)
    with replace_together(tmp_path):
        write_text(tmp_path / 'a.json', 'first')
        with replace_together(tmp_path / '..' / tmp_path.name):
            write_text(tmp_path / 'a.json', NEW['a.json'])
            with replace_atomically(tmp_path / 'b.txt') as file:
                file.write_text(NEW['b.txt'])
        write_text(tmp_path / 'other' / 'x', 'x')
        with replace_atomically(tmp_path / '.cache', alone=True) as file:
            file.touch()
        assert (tmp_path / '.cache').exists()
        assert {name: (tmp_path / name).read_text() for name in OLD} == OLD
        assert content(tmp_path / 'other') == {'x': 'x'}
    assert {name: (tmp_path / name).read_text() for name in OLD} == {**NEW, 'c': OLD['c']}
    assert sorted(os.listdir(tmp_path)) == ['.cache', 'a.json', 'b.txt', 'c', 'other']


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b'caf\xe9.txt')
    write_set(tmp_path, {name: 'x', 'ü.txt': 'y'})
    assert content(tmp_path) == {name: 'x', 'ü.txt': 'y'}


def unfinished(folder, **changes):
    """Write a set whose process was killed before it renamed the files."""
    folder.mkdir(exist_ok=True)
    entries = []
    for name, text in NEW.items():
        path = temporary_path(folder / name)
        path.write_text(text)
        entries.append({'temporary': path.name, 'name': name, 'size': len(text), **changes})
    write_json(folder / files._JOURNAL, entries)
    return entries


@pytest.mark.parametrize(
    'use', [finish_set, lock_folder, wait_for_lock, lambda folder: file_exists(folder / 'x'), has_content]
)
def test_whoever_uses_the_folder_completes_the_set(tmp_path, use):
    unfinished(tmp_path)
    with used if hasattr(used := use(tmp_path), '__enter__') else wait_for_lock(tmp_path):
        assert {name: (tmp_path / name).read_text() for name in NEW} == NEW


def test_another_machine_may_complete_the_set_at_the_same_time(tmp_path, monkeypatch):
    """On a shared disk whose locks are those of each machine."""
    unfinished(tmp_path)
    rename = files.rename

    def renamed_before(source, path):
        os.replace(source, path)
        if path.name == 'c':
            (tmp_path / files._JOURNAL).unlink()
        rename(source, path)

    monkeypatch.setattr(files, 'rename', renamed_before)
    finish_set(tmp_path)
    assert content(tmp_path) == NEW


def test_some_files_may_be_renamed_already(tmp_path):
    first, *_ = unfinished(tmp_path)
    os.replace(tmp_path / first['temporary'], tmp_path / first['name'])
    finish_set(tmp_path)
    assert content(tmp_path) == NEW


@pytest.mark.parametrize(
    ('changes', 'fault'),
    [
        ({'name': '../x'}, "names '../x', which is no file of its folder"),
        ({'name': '..'}, "names '..', which is no file of its folder"),
        ({'name': ''}, "names '', which is no file of its folder"),
        ({'name': 'a\0b'}, r"names 'a\\x00b', which is no file of its folder"),
        ({'temporary': '.a/../.b.01234567.tmp'}, 'which is no file of its folder'),
        ({'temporary': 'photo.jpg'}, 'which is no file of its folder'),
        ({'size': 99}, "has a 'a.json' that is missing or damaged"),
        ({'size': 'x'}, 'is damaged'),
    ],
)
def test_a_journal_that_is_useless_is_one_error(tmp_path, changes, fault):
    """For example that of a stranger, whose files would be renamed to others."""
    folder = tmp_path / 'set'
    unfinished(folder, **changes)
    before = content(folder)
    with pytest.raises(UserError, match=f'{fault}; remove the list, then run that command again$'):
        finish_set(folder)
    assert content(folder) == before
    assert os.listdir(tmp_path) == ['set']
    (folder / files._JOURNAL).unlink()
    write_set(folder)
    assert {name: (folder / name).read_text() for name in NEW} == NEW


@pytest.mark.parametrize('data', [b'', b'{', b'[' * 100_000, b'{}', b'\xff', b'[{"name": "a"}]', b'null'])
def test_a_damaged_journal_is_one_error(tmp_path, data):
    (tmp_path / files._JOURNAL).write_bytes(data)
    with pytest.raises(UserError, match='the list is damaged; remove the list'):
        finish_set(tmp_path)


def test_a_set_of_one_file_needs_no_journal(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(files, 'on_operation', lambda event, path: events.append((event, path.name)))
    write_set(tmp_path, {'a': 'x'})
    assert [name for event, name in events if event == 'after replace'] == ['a']
    with replace_together(tmp_path):
        pass
    assert content(tmp_path) == {'a': 'x'}


def test_the_files_are_on_the_disk_before_the_journal_and_renamed_before_it_is_removed(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(files, 'on_operation', lambda event, path: events.append((event, path.name)))
    write_set(tmp_path)
    done = [event for event in events if event[0].startswith('after')]
    journal = done.index(('after replace', files._JOURNAL))
    assert sum(event == 'after sync' for event, _ in done[:journal]) == 4
    assert done[journal + 1 :] == [
        ('after sync_folder', tmp_path.name),
        *(('after replace', name) for name in NEW),
        ('after sync_folder', tmp_path.name),
        ('after unlink', files._JOURNAL),
    ]


def leave_temporary_file(folder):
    with replace_atomically(folder / 'a.pth') as path:
        path.write_text('half')
        os.mkdir(temporary_path(folder / 'b'))
        temporary_path(folder / 'c').write_text('')
        os.kill(os.getpid(), 9)


@pytest.mark.process
def test_temporary_files_of_dead_processes_are_removed_and_those_of_living_ones_stay(tmp_path):
    assert in_a_process(leave_temporary_file, tmp_path) == -9
    (tmp_path / 'a.0123abcd.tmp.pth').write_text('of the user')
    with replace_atomically(tmp_path / 'mine') as mine, temporary_folder(tmp_path / 'folder') as folder:
        mine.write_text('x')
        assert in_a_process(leave_temporary_file, tmp_path) == -9
        assert len(os.listdir(tmp_path)) == 6
        remove_leftovers(tmp_path)
        assert {*os.listdir(tmp_path)} == {mine.name, folder.name, 'a.0123abcd.tmp.pth'}
    assert {*os.listdir(tmp_path)} == {'mine', 'a.0123abcd.tmp.pth'}


@pytest.mark.process
def test_the_first_write_of_a_process_removes_leftovers(tmp_path):
    assert in_a_process(leave_temporary_file, tmp_path) == -9
    write_text(tmp_path / 'x', 'x')
    assert os.listdir(tmp_path) == ['x']


def test_files_of_another_machine_are_removed_when_a_day_old(tmp_path, monkeypatch):
    """Its process may be alive. In a folder where this process is the only writer, they are removed at once."""
    temporary._machine.cache_clear()
    temporary._owner.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(socket, 'gethostname', lambda: 'elsewhere')
        young, old = temporary_path(tmp_path / 'young.pth'), temporary_path(tmp_path / 'old.pth')
    temporary._machine.cache_clear()
    temporary._owner.cache_clear()
    for path in (young, old):
        path.write_text('')
    os.utime(old, (0, time.time() - 25 * 3600))
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [young.name]
    remove_leftovers(tmp_path, ('.csv',))
    assert os.listdir(tmp_path) == [young.name]
    remove_leftovers(tmp_path, ('.pth',))
    assert os.listdir(tmp_path) == []


def test_processes_that_proc_hides_are_alive(tmp_path, monkeypatch):
    """Those of other users, with the mount option hidepid; and strangers' names with any number."""
    path = temporary_path(tmp_path / 'a.pth')
    machine, _, start, number = path.name.split('.')[2].split('-')

    def hidden(self, *arguments, **options):
        raise FileNotFoundError

    monkeypatch.setattr(type(path), 'read_text', hidden)
    assert not is_abandoned(path)
    for other in (f'{2**22 + 1:x}', 'f' * 100):
        assert is_abandoned(tmp_path / f'.a.{machine}-{other}-{start}-{number}.tmp.pth')


def test_another_process_with_the_same_id_is_not_the_owner(tmp_path):
    path = temporary_path(tmp_path / 'a.pth')
    machine, pid, start, number = path.name.split('.')[2].split('-')
    assert not is_abandoned(path)
    assert is_abandoned(tmp_path / f'.a.{machine}-{pid}-{int(start, 16) - 1:x}-{number}.tmp.pth')


@pytest.mark.parametrize(
    'name', ['a.pth', 'a', 'ä' * 100 + '.json', '.hidden', 'a.tar.gz', 'two\nlines.csv', 'x' * 255]
)
def test_names_of_temporary_files(tmp_path, name):
    path = temporary_path(tmp_path / name)
    assert is_temporary(path.name)
    assert path.suffix == (tmp_path / name).suffix or not (tmp_path / name).suffix
    path.write_text('')  # it is not too long
    assert not is_temporary(name)


def test_a_set_waits_for_the_one_that_another_thread_switches(tmp_path):
    with wait_for_lock(tmp_path):
        write_set(tmp_path)  # of the same thread
    assert content(tmp_path) == NEW


def test_folders_of_results(tmp_path):
    names = ('config.yaml', 'classes.json', 'model.pth')
    with lock_folder(tmp_path):
        with wait_for_lock(tmp_path), replace_atomically(tmp_path / 'x') as file:
            file.write_text('')
            assert not has_content(tmp_path)
        (tmp_path / 'x').unlink()
        assert not holds_others(tmp_path, names, 'model.pth')
        (tmp_path / 'config.yaml').touch()
        assert has_content(tmp_path)
        assert not holds_others(tmp_path, names, 'model.pth')
        (tmp_path / 'photo.jpg').touch()
        assert holds_others(tmp_path, names, 'model.pth')
        (tmp_path / 'photo.jpg').unlink()
        (tmp_path / 'model.pth').touch()
        assert holds_others(tmp_path, names, 'model.pth')


def test_a_read_only_folder_is_one_error(tmp_path, monkeypatch):
    unfinished(tmp_path)

    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(files, 'removed_lock', refuse)
    with pytest.raises(UserError, match=r'cannot be completed \(permission denied\); run that command again'):
        finish_set(tmp_path)
    assert json.loads((tmp_path / files._JOURNAL).read_text())
