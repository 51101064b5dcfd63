"""Atomic, durable file writes, and a lock on a folder."""

import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lib.errors import UserError

# For tests of faults: called as on_operation('before replace', path) and on_operation('after replace', path), likewise
# for each write, sync, sync_folder and unlink. It may raise the error of a full disk, or end the process.
on_operation: Callable[[str, Path], None] | None = None


@contextmanager
def operation(kind: str, path: Path) -> Iterator[None]:
    """Call the hook of the tests before and after the block, which changes the files on the disk.

    Args:
        kind: 'write' (also to a temporary file), 'sync', 'sync_folder', 'replace' (to `path`) or 'unlink'.
        path: the file or folder.
    """
    if on_operation is not None:
        on_operation(f'before {kind}', path)
    yield
    if on_operation is not None:
        on_operation(f'after {kind}', path)


@contextmanager
def replace_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and durably rename it to `path` at the end of the block.

    The folder is created if needed. On an exception, the temporary file is removed and `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # With the same suffix, because writers such as matplotlib select the format by it.
    temporary = path.with_name(f'.{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}')
    try:
        with operation('write', temporary):
            yield temporary
        sync_file(temporary)
        with operation('replace', path):
            os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        # The error must name `path`: the user does not know the temporary file, and a full disk names no file.
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, suffixes: Collection[str]) -> None:
    """Remove temporary files of `replace_atomically` with one of these suffixes that a killed process left in `folder`.

    Only for a process that is the only writer of such files there.
    """
    for path in folder.glob('.*.tmp.*'):
        if path.suffix in suffixes and re.fullmatch(r'\..+\.[0-9a-f]{8}\.tmp\.\w+', path.name):
            with operation('unlink', path):
                path.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Replace the file at `path` by `data`, atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replace the file at `path` by `text` in UTF-8, atomically; bytes of paths that are not UTF-8 are escaped."""
    # In JSON, this escape is that of the standard.
    write_bytes(path, text.encode('utf-8', 'backslashreplace'))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Replace the file at `path` by `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + '\n')


def read_json(path: str | os.PathLike) -> Any:
    """Return the content of a JSON file that a command wrote; None if there is none or it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError):
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


_LOCK_FILE, _FILES_LOCK = '.lock', '.files.lock'
_POLL_SECONDS, _WAIT_SECONDS = 0.01, 60


@contextmanager
def lock_folder(folder: Path, key: str = 'NAME') -> Iterator[None]:
    """Lock `folder`, which is created if needed, within the block. The system releases the lock of a killed process.

    `key`: option that selects another folder, for the error message.

    Raises:
        UserError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK_FILE, 'a+', encoding='ascii') as file:
        if not _acquire(file):
            file.seek(0)
            holder = file.read().strip() or 'unknown'
            raise UserError(f'{folder} is in use by another run (process {holder}); wait for it, or use another {key}')
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def wait_for_lock(folder: Path) -> Iterator[None]:
    """Hold a lock on the files that commands update in `folder` within the block; wait while another process holds it.

    It differs from that of `lock_folder`, which a training run holds to its end.

    Raises:
        UserError: another process holds it for a minute, or the file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _FILES_LOCK, 'a', encoding='ascii') as file:
        end = time.monotonic() + _WAIT_SECONDS
        while not _acquire(file):
            if time.monotonic() > end:
                raise UserError(f'{file.name} cannot be locked: another process holds it; run the command again later')
            time.sleep(_POLL_SECONDS)
        yield


@contextmanager
def file_lock(path: Path) -> Iterator[Callable[[], bool]]:
    """Yield a function that tries to lock the file at `path` (created if needed) and returns True if it is locked.

    The lock is released at the end of the block, or when the process ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a', encoding='ascii') as file:
        yield lambda: _acquire(file)


def _acquire(file: IO[str]) -> bool:
    """Lock the file and return True, or return False if another process has locked it."""
    try:
        if sys.platform == 'win32':
            import msvcrt

            # A byte far behind the text, so that other processes can still read the process id.
            file.seek(1 << 20)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
