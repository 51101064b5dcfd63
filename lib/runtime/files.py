"""Atomic, durable file writes: of one file, or of several that belong together; and locks on a folder.

Files that belong together are written and synced under temporary names, listed in a journal, and renamed. A process
that is killed before the journal is written leaves the old files; after it, the next command renames the rest.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.runtime.locks import removed_lock
from lib.runtime.mirror import with_urls
from lib.runtime.read_file import read_text, reason_of
from lib.runtime.storage import exists, publish, remove_object
from lib.runtime.temporary import is_abandoned, is_temporary, journal_of, read_journal, temporary_path
from lib.runtime.uploads import finish_uploads, remove_objects

# For tests of faults: called as on_operation('before replace', path) and on_operation('after replace', path), likewise
# for each write, sync, sync_folder and unlink. It may raise the error of a full disk, or end the process.
on_operation: Callable[[str, Path], None] | None = None


@contextmanager
def operation(kind: str, path: Path) -> Iterator[None]:
    """Call the hook of the tests before and after the block, which changes the files on the disk; errors name `path`.

    `kind`: 'write' (also to a temporary file), 'sync', 'sync_folder', 'replace' (to `path`) or 'unlink'."""
    try:
        if on_operation is not None:
            on_operation(f'before {kind}', path)
        yield
        if on_operation is not None:
            on_operation(f'after {kind}', path)
    except OSError as error:
        error.filename = error.filename or str(path)  # that of a full disk names none
        raise


@contextmanager
def replace_atomically(path: str | os.PathLike, *, alone: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and durably rename it to `path` at the end of the block.

    Within `replace_together` of its folder, it is renamed at the end of that block, unless it is `alone`, such as a
    cache, which is read again at once. The folder is created if needed. On an exception, the temporary file is removed
    and `path` is unchanged.
    """
    path = Path(path)
    _prepare(path.parent)
    temporary = temporary_path(path)
    files: dict[str, Path] | None = None
    try:
        with operation('write', temporary):
            yield temporary
        sync_file(temporary)
        files = _state.sets.get(path.parent.resolve()) if _state.sets and not alone else None
        if files is None:
            rename(temporary, path)
            sync_folder(path.parent)
        else:
            earlier, files[path.name] = files.get(path.name), temporary
            if earlier is not None:
                earlier.unlink()
    except OSError as error:
        # The error must name `path`: the user does not know the temporary file, and a full disk names no file.
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        if files is None:
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_together(folder: str | os.PathLike) -> Iterator[None]:
    """Switch the files that the block replaces in `folder` together, at its end.

    Within the block, `replace_atomically`, `write_json`, ... of this thread write files in `folder` under temporary
    names only, and reading yields the old files. On an exception, or after a kill within the block, all files are the
    old ones; after a kill while they are renamed, the next command that uses the folder renames the rest.

    Raises:
        UserError: the files of an earlier command that was stopped cannot be completed.
    """
    folder = Path(folder)
    _prepare(folder)
    finish_set(folder)
    key = folder.resolve()
    if key in _state.sets:  # the files belong to a larger set
        yield
        return
    files = _state.sets[key] = {}
    try:
        try:
            yield
        finally:
            del _state.sets[key]
        with wait_for_lock(folder):
            if len(files) > 1:
                sync_folder(folder)
                write_json(folder / _JOURNAL, journal_of(files))
                _complete_set(folder)
            else:
                for name, file in files.items():
                    rename(file, folder / name)
                sync_folder(folder)
    except BaseException:
        if not os.path.lexists(folder / _JOURNAL):
            for file in files.values():
                file.unlink(missing_ok=True)
        raise


def finish_set(folder: Path) -> None:
    """Complete the files that a killed process was renaming in `folder`: for readers of files that belong together.

    Raises:
        UserError: a file is missing or damaged, or the folder cannot be written to.
    """
    if not os.path.lexists(folder / _JOURNAL):
        return
    try:
        with wait_for_lock(folder):
            pass  # which completes them
    except OSError as error:
        raise UserError(
            f'{folder}: a command was stopped while it replaced files that belong together, and they cannot be '
            f'completed ({reason_of(error)}); run that command again'
        ) from None


def file_exists(path: str | os.PathLike) -> bool:
    """Return whether there is a file of a set, once the set is completed: see `finish_set`."""
    finish_set(Path(path).parent)
    return exists(path)


def _complete_set(folder: Path) -> list[Path]:
    """Rename the files in the journal, if there is one, remove it, and return them. Call it while holding the lock."""
    journal = folder / _JOURNAL
    files = read_journal(journal)
    if files is None:
        return []
    for file in files:
        try:
            rename(folder / file.temporary, folder / file.name)
        except FileNotFoundError:  # renamed by the killed process, or (no common locks) by another machine
            publish(folder / file.name)
    read_journal(journal)  # raises if a file is missing
    sync_folder(folder)
    remove(journal)
    return [folder / file.name for file in files]


class _State(threading.local):
    """Of one thread: the sets that are being written (name -> temporary file, by folder), and the locked folders."""

    def __init__(self) -> None:
        self.sets: dict[Path, dict[str, Path]] = {}
        self.locked: set[Path] = set()


_state = _State()
_prepared: set[Path] = set()
completed: set[Path] = set()  # absolute paths that were completed for killed commands, which may write them again
_JOURNAL, FILES_LOCK = '.unfinished.json', '.files.lock'


def _prepare(folder: Path) -> None:
    """Create a folder; remove leftovers the first time that this process writes into it."""
    folder.mkdir(parents=True, exist_ok=True)
    if (absolute := folder.absolute()) not in _prepared:
        _prepared.add(absolute)
        remove_leftovers(folder)
        finish_uploads(folder)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Create a hidden folder beside `path`, to be renamed to it or emptied into it; remove the rest after the block."""
    _prepare(path.parent)
    temporary = temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def rename(source: Path, path: Path) -> None:
    """Rename a file or folder to `path`, and replace (and upload) a file there; `sync_folder` makes it durable."""
    with operation('replace', path):
        os.replace(source, path)
    publish(path)


def remove_leftovers(folder: Path, suffixes: Collection[str] = ()) -> None:
    """Complete or remove what killed processes left in `folder`: a set of files, temporary files and folders.

    Args:
        suffixes: also remove temporary files with these suffixes whose process may be alive on another machine. Only
            for a process that is the only writer of such files there.
    """
    finish_set(folder)
    if not _leftovers(folder, suffixes) and not os.path.lexists(folder / FILES_LOCK):
        return
    # A file in a journal is no leftover: under the lock, no journal is written, and an earlier one is completed.
    with suppress(OSError, UserError), wait_for_lock(folder, seconds=0):
        for path in _leftovers(folder, suffixes):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder, if it exists; a folder disappears at once, by a temporary name."""
    if not path.is_dir() or path.is_symlink():
        with operation('unlink', path):
            path.unlink(missing_ok=True)
        remove_object(path)
        return
    hidden = path if is_temporary(path.name) else temporary_path(path)
    rename(path, hidden)
    with operation('unlink', hidden):
        shutil.rmtree(hidden)
    remove_objects(path)


def _leftovers(folder: Path, suffixes: Collection[str]) -> list[Path]:
    with os.scandir(folder) as entries:  # of maybe millions of files
        paths = [Path(entry.path) for entry in entries if entry.name[0] == '.' and is_temporary(entry.name)]
    return [path for path in paths if is_abandoned(path) or path.suffix in suffixes]


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Replace the file at `path` by `data`, atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replace the file at `path` by `text` in UTF-8, atomically; bytes of paths that are not UTF-8 are escaped."""
    write_bytes(path, with_urls(text).encode('utf-8', 'backslashreplace'))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Replace the file at `path` by `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + '\n')


def read_json(path: str | os.PathLike) -> Any:
    """Return the content of a JSON file that a command wrote; None if there is none or it is damaged."""
    with suppress(OSError, ValueError, RecursionError):
        return json.loads(read_text(path))
    return None


def sync_file(path: Path) -> None:
    """Make the content of the file at `path` durable (fsync)."""
    with operation('sync', path), open(path, 'rb') as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable (fsync); does nothing on Windows, which cannot open folders."""
    if os.name == 'nt':
        return
    with operation('sync_folder', folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def wait_for_lock(folder: Path, seconds: float = 60) -> Iterator[None]:
    """Hold a lock on the files that commands update in `folder` within the block; wait while another process holds it.

    A training run holds another one to its end: `lock_folder`. A thread may lock a folder again.

    Raises:
        UserError: another process holds it for so many seconds, or the file system has no locks.
    """
    key = folder.resolve()
    if key in _state.locked:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with removed_lock(folder / FILES_LOCK, seconds):
        _state.locked.add(key)
        try:
            completed.update(file.absolute() for file in _complete_set(folder))
            yield
        finally:
            _state.locked.discard(key)
