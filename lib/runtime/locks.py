"""Locks on files, which the system releases when their process ends, even by a kill."""

import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lib.errors import UserError

_POLL_SECONDS = 0.01
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, getattr(errno, 'EDEADLOCK', errno.EAGAIN)}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


def open_lock(path: Path) -> IO[str]:
    """Open a lock file, which is created if needed, without changing it.

    A lock file of another user, or in a read-only folder, is opened for reading, which is sufficient to lock it.

    Raises:
        UserError: the path is a link, a pipe or another special file.
        OSError: there is no such file and it cannot be created.
    """
    flags = getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_CLOEXEC', 0)
    mode = 'r+'
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
        except OSError as error:
            if error.errno not in _READ_ONLY or not os.path.lexists(path):
                raise
            descriptor, mode = os.open(path, os.O_RDONLY | flags), 'r'
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise _no_lock_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_lock_file(path)
    return os.fdopen(descriptor, mode, encoding='ascii', errors='replace')


def _no_lock_file(path: Path) -> UserError:
    return UserError(f'{path} is needed as a lock file, but is a link, a folder or a special file; remove it')


def acquire(file: IO[str], path: Path) -> bool:
    """Lock the open file at `path` until it is closed and return True; return False if another process has locked it.

    Raises:
        UserError: the file system has no locks.
    """
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
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno in _NO_LOCKS:
            raise UserError(
                f'{path}: this file system has no locks ({error.strerror}), which keep two commands from overwriting '
                "each other's files; give a folder on another disk"
            ) from None
        if error.errno == errno.EBADF:  # NFS locks no file that is open for reading only
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from None
        error.filename = str(path)
        raise
    return True


def locked_file(path: Path) -> IO[str] | None:
    """Return the open file, locked; None if another process holds the lock, or has just renamed or removed the file.

    Raises:
        UserError, OSError: as `open_lock` and `acquire`.
    """
    file = open_lock(path)
    try:
        with suppress(FileNotFoundError):
            if acquire(file, path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


@contextmanager
def file_lock(path: Path) -> Iterator[Callable[[], bool]]:
    """Yield a function that tries to lock the file at `path` (created if needed) and returns True if it is locked.

    The lock is released at the end of the block, or when the process ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_lock(path) as file:
        yield lambda: acquire(file, path)


@contextmanager
def removed_lock(path: Path, seconds: float) -> Iterator[None]:
    """Hold a lock on a file within the block, at whose end the file is removed; wait while another process holds it.

    Raises:
        UserError: another process holds it for so many seconds, or the file system has no locks.
    """
    end = time.monotonic() + seconds
    while (file := locked_file(path)) is None:
        if time.monotonic() > end:
            raise UserError(f'{path} cannot be locked: another process holds it; run the command again later')
        time.sleep(_POLL_SECONDS)
    with file:
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                os.unlink(path)
