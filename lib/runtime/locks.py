"""Locks on files, which the system releases when their process ends."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lib.errors import UserError

_POLL_SECONDS = 0.01


def acquire(file: IO[str]) -> bool:
    """Lock an open file until it is closed and return True; return False if another process has locked it."""
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


@contextmanager
def file_lock(path: Path) -> Iterator[Callable[[], bool]]:
    """Yield a function that tries to lock the file at `path` (created if needed) and returns True if it is locked.

    The lock is released at the end of the block, or when the process ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a', encoding='ascii') as file:
        yield lambda: acquire(file)


@contextmanager
def removed_lock(path: Path, seconds: float) -> Iterator[None]:
    """Hold a lock on a file within the block, at whose end the file is removed; wait while another process holds it.

    Raises:
        UserError: another process holds it for so many seconds, or the file system has no locks.
    """
    end = time.monotonic() + seconds
    while (file := _locked(path)) is None:
        if time.monotonic() > end:
            raise UserError(f'{path} cannot be locked: another process holds it; run the command again later')
        time.sleep(_POLL_SECONDS)
    with file:
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                os.unlink(path)


def _locked(path: Path) -> IO[str] | None:
    """Return the open file, locked; None if another process holds the lock, or has just removed the file."""
    file = open(path, 'a', encoding='ascii')  # noqa: SIM115 - closed by the caller
    try:
        if acquire(file) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    except FileNotFoundError:
        pass
    file.close()
    return None
