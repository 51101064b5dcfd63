"""Read files that strangers may have named: only regular ones, without blocking, up to a size.

Opening a named pipe would wait for a writer, a device such as /dev/zero has no end, and a sparse file of a terabyte
fills the memory. Imports nothing but the standard library, so that configs are read with it, too.

A path in the local mirror of object storage is downloaded first where it is absent: see lib/runtime/mirror.py.
"""

import errno
import io
import os
import stat
from pathlib import Path

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30
# The largest files that are read as a whole, by kind. Files that are mapped or streamed have no limit.
MAX_IMAGE_BYTES = 300 * MB  # three copies must fit into 1 GB, see lib/dataset/decode_cost.py
MAX_JSON_BYTES = 16 * GB  # annotations of 100 million images
MAX_TEXT_BYTES = 4 * GB  # lists and tables, which are read by lines
MAX_RECORD_BYTES = 256 * MB  # what this project writes about a run: metrics, quarantined images, descriptions
MAX_CONFIG_BYTES = 4 * MB

MARK = f'{os.sep}bucket-mirror{os.sep}'  # in the paths of all files of the mirror
# O_NONBLOCK has no effect on regular files; O_NOCTTY: a terminal does not become the controlling one.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ('O_NONBLOCK', 'O_NOCTTY', 'O_CLOEXEC', 'O_BINARY'))
_KINDS = {
    stat.S_IFIFO: 'a named pipe',
    stat.S_IFSOCK: 'a socket',
    stat.S_IFCHR: 'a device',
    stat.S_IFBLK: 'a device',
}
_MOST_PER_READ = GB


class RefusedFileError(OSError):
    """A path that is no regular file, or a file that is too large for its kind.

    `strerror` follows 'PATH: ', such as 'is a named pipe, not a file'.
    """


def open_descriptor(path: str | os.PathLike, max_bytes: int | None = None, flags: int = 0) -> tuple[int, int]:
    """Open a regular file for reading; return its descriptor and its size in bytes.

    Args:
        max_bytes: largest size of a file of this kind; None: any.
        flags: more flags of os.open, such as os.O_RDWR.

    Raises:
        RefusedFileError: not a regular file, or too large.
        OSError: absent, a folder (IsADirectoryError), forbidden, or with a name that no file can have.
        UserError: in object storage, and the request is refused or fails.
    """
    if MARK in os.fspath(path):
        from lib.runtime.storage import fetch

        fetch(path)
    try:
        descriptor = os.open(path, _FLAGS | flags)
    except ValueError:  # a NUL or a lone surrogate
        raise FileNotFoundError(errno.ENOENT, 'no file can have this name', path) from None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            raise RefusedFileError(errno.EINVAL, 'is a socket or a device, not a file', path) from None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _not_regular(status.st_mode, path)
        if max_bytes is not None and status.st_size > max_bytes:
            raise _too_large(path, max_bytes)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, status.st_size


def read_bytes(path: str | os.PathLike, *, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most `max_bytes`.

    Raises:
        OSError: as `open_descriptor`; a file that grows beyond `max_bytes` while it is read.
    """
    descriptor, size = open_descriptor(path, max_bytes)
    try:
        check_memory(path, size)
        parts = []
        num_left = max_bytes
        # One byte more than its size; a short read, or a file of /proc, whose size is 0, takes several.
        while part := os.read(descriptor, min(max(size + 1, 4 * KB), _MOST_PER_READ)):
            parts.append(part)
            num_left -= len(part)
            size = max(0, size - len(part))
            if num_left < 0:
                raise _too_large(path, max_bytes)
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise
    finally:
        os.close(descriptor)
    return parts[0] if len(parts) == 1 else b''.join(parts)


def check_memory(path: str | os.PathLike, size: int) -> None:
    """Raise RefusedFileError if a file of `size` bytes, to be read as a whole, is larger than the free memory."""
    if size > MAX_RECORD_BYTES:
        free = available_memory()
        if free is not None and size > free:
            reason = f'has {size / GB:.3g} GB, but {free / GB:.3g} GB of memory are free'
            raise RefusedFileError(errno.EFBIG, reason, os.fspath(path))


def available_memory() -> int | None:
    """Return the memory in bytes that processes can still take, or None if unknown (all systems but Linux)."""
    try:
        with open('/proc/meminfo', encoding='ascii') as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith('MemAvailable')), None)
    except OSError:
        return None


def read_text(path: str | os.PathLike, *, max_bytes: int = MAX_RECORD_BYTES, encoding: str = 'utf-8') -> str:
    """Return the text of a regular file, line ends as '\\n'. Raises: OSError as `read_bytes`; UnicodeDecodeError."""
    text = read_bytes(path, max_bytes=max_bytes).decode(encoding)
    return text.replace('\r\n', '\n').replace('\r', '\n')


def open_regular(path: str | os.PathLike, *, max_bytes: int | None = None) -> io.BufferedReader:
    """Open a regular file for reading bytes. Raises: OSError as `open_descriptor`."""
    descriptor, _ = open_descriptor(path, max_bytes)  # here, since open() itself refuses some names by a ValueError
    return open(path, 'rb', opener=lambda path, flags: descriptor)


def open_text(
    path: str | os.PathLike,
    *,
    max_bytes: int | None = MAX_TEXT_BYTES,
    encoding: str = 'utf-8',
    errors: str = 'strict',
    newline: str | None = None,
) -> io.TextIOWrapper:
    """Open a regular file for reading text. Raises: OSError as `open_descriptor`."""
    return io.TextIOWrapper(open_regular(path, max_bytes=max_bytes), encoding=encoding, errors=errors, newline=newline)


def check_regular(path: str | os.PathLike, *, max_bytes: int | None = None) -> Path:
    """Return the path of a file that another library opens. Raises: OSError as `open_descriptor`."""
    os.close(open_descriptor(path, max_bytes)[0])
    return Path(path)


def reason_of(error: OSError) -> str:
    """Return why a file cannot be read, without its name: 'permission denied', 'is a named pipe, not a file'."""
    reason = error.strerror or str(error) or 'cannot be read'
    return reason if isinstance(error, RefusedFileError) else reason.lower()


def _not_regular(mode: int, path: str | os.PathLike) -> OSError:
    if stat.S_ISDIR(mode):
        return IsADirectoryError(errno.EISDIR, 'is a folder, not a file', os.fspath(path))
    return RefusedFileError(errno.EINVAL, f'is {_KINDS.get(stat.S_IFMT(mode), "no file")}, not a file', os.fspath(path))


def _too_large(path: str | os.PathLike, max_bytes: int) -> OSError:
    limit = f'{max_bytes / GB:.0f} GB' if max_bytes >= GB else f'{max_bytes / MB:.0f} MB'
    return RefusedFileError(errno.EFBIG, f'is larger than {limit}, too large for a file of this kind', os.fspath(path))
