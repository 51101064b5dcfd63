"""Files in object storage, by their paths in a local mirror: see lib/runtime/mirror.py.

All code keeps working on local paths. A path of the config is compared with its object once, when the command starts
(`prepare_path`, `materialize`, `pull`); a file that is missing is downloaded when it is opened (`fetch`). Files that a
command writes are uploaded by `publish`.
"""

import errno
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lib.errors import UserError
from lib.runtime.mirror import count, is_clean, is_here, is_mirrored, location, stamp, writing_to_cache
from lib.runtime.read_file import RefusedFileError

if TYPE_CHECKING:
    from lib.runtime.bucket import Bucket
    from lib.runtime.storage_clients import Entry

_PARALLEL = 24  # requests of a process at a time
_MAX_CHECKED = 100_000

_locks = [threading.Lock() for _ in range(64)]  # of downloads, by path
_checked: set[str] = set()  # paths that this process has compared with their objects


def materialize(path: str | os.PathLike) -> None:
    """Download the object of a path if it is absent here or differs; compare it once per process.

    Does nothing outside of the mirror. A file that was written here after its object stays.

    Raises:
        FileNotFoundError: there is no such object.
        UserError: the request is refused or fails.
    """
    text = os.fspath(path)
    if is_mirrored(text) and not _is_hidden(text) and not (text in _checked and is_here(text)):
        with _reading(), _lock_of(text):
            _download_unless_newer(text)
        _check(text)


def fetch(path: str | os.PathLike) -> None:
    """Download the object of a path in the mirror if it is absent here. Raises: as `materialize`."""
    text = os.fspath(path)
    if not is_here(text) and not _is_hidden(text):
        with _reading(), _lock_of(text):
            if not is_here(text):
                _download(text, is_bulk=True)


def exists(path: str | os.PathLike) -> bool:
    """Return whether there is a file or a folder, also in object storage; a file is downloaded. Raises: UserError."""
    with suppress(FileNotFoundError):
        materialize(path)
    return os.path.exists(path)


def prepare_path(path: str | os.PathLike) -> None:
    """Make a path of the config ready: download a file, create a folder; does nothing if there is no such object.

    Raises:
        UserError: the request is refused or fails.
    """
    if not is_mirrored(path):
        return
    with _reading():
        bucket, key = bucket_and_key(path)
        kind = bucket.kind(key)
    if kind == 'file':
        materialize(path)
    elif kind == 'folder':
        with writing_to_cache(path):
            os.makedirs(path, exist_ok=True)


def pull(folder: str | os.PathLike, without: tuple[str, ...] = ()) -> list[Path]:
    """Bring the files of a folder up to date with their objects, in both directions; return those that there are.

    An object that is newer than the file here replaces it. A file that is newer, left by a command that was stopped
    before it uploaded it, is uploaded. A file that equals an object that no longer exists is removed.

    Args:
        without: endings of names that are not downloaded; their folders are created.

    Raises:
        UserError: a request is refused or fails.
    """
    folder = Path(folder)
    if not is_mirrored(folder):
        return []
    with _reading():
        bucket, key = bucket_and_key(folder)
        try:
            found = bucket.entries(key, recursive=True)
            there = {e.name for e in found if not e.is_folder and not _is_hidden(e.name)}
        except FileNotFoundError:
            there = set()
        for name in there:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        here = {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}
        names = there | {name for name in here if not _is_hidden(name)}
        names = {name for name in names if not name.endswith(without) or _is_changed(folder / name)}
        paths = [str(folder / name) for name in sorted(names)]
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(sync_object, paths))
    for path in paths:
        _check(path)
    return [Path(path) for path in paths if os.path.exists(path)]


def entries(folder: str | os.PathLike) -> 'list[Entry]':
    """Return the entries of a folder.

    Raises:
        FileNotFoundError: there is no such folder.
        UserError: the request is refused or fails.
    """
    with _reading():
        bucket, key = bucket_and_key(folder)
        return bucket.entries(key)


def size_of(path: str | os.PathLike) -> int:
    """Return the bytes of an object. Raises: as `materialize`."""
    with _reading():
        bucket, key = bucket_and_key(path)
        return bucket.version(key).size


def read_ranges(path: str | os.PathLike, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return ranges of an object, given as (offset, length), in few requests at a time.

    Raises:
        FileNotFoundError: there is no such object.
        UserError: a request is refused or fails.
    """
    with _reading():
        bucket, key = bucket_and_key(path)
        return bucket.read_ranges(key, ranges, request_pool())


def fetch_ahead(paths: Iterable[str]) -> None:
    """Begin to download files of the mirror; an error is one of `fetch` later."""
    for path in paths:
        if not is_here(path):
            request_pool().submit(fetch, path)


def publish(path: str | os.PathLike) -> None:
    """Upload a complete file of the mirror; the object is visible only when it is complete.

    Does nothing outside of the mirror, for hidden files, such as locks, and for folders: stores of rows in progress.

    Raises:
        OSError: the request is refused or fails.
    """
    text = os.fspath(path)
    if not is_mirrored(text) or _is_hidden(text) or os.path.isdir(text):
        return
    with _lock_of(text):
        _upload(text)
    _check(text)


def remove_object(path: str | os.PathLike) -> None:
    """Remove the object of a path in the mirror, if it exists. Raises: OSError, as `publish`."""
    if is_mirrored(path) and not _is_hidden(os.fspath(path)):
        bucket, key = bucket_and_key(path)
        bucket.remove(key)


@cache
def request_pool() -> ThreadPoolExecutor:
    """Return the threads of this process that wait for the server."""
    return ThreadPoolExecutor(_PARALLEL, thread_name_prefix='storage')


def sync_object(path: str) -> None:
    """Bring a file of the mirror and its object up to date, in the direction of `pull`. Raises: OSError."""
    if _is_hidden(path):
        return
    with _lock_of(path), suppress(FileNotFoundError):
        if _download_unless_newer(path, may_be_absent=True):
            _upload(path)


def _download_unless_newer(path: str, *, may_be_absent: bool = False) -> bool:
    """Download an object unless the file here equals it or is newer; return whether it is newer."""
    status = _status_of(path)
    bucket, key = bucket_and_key(path)
    try:
        version = bucket.version(key)
    except FileNotFoundError:
        if status is None or is_clean(status):
            if status is not None:
                os.unlink(path)
            raise
        return may_be_absent
    if status is not None:
        if version.is_of(status):
            return False
        if not is_clean(status) and status.st_mtime >= version.seconds:
            return True
    _download(path)
    return False


def _download(path: str, *, is_bulk: bool = False) -> None:
    from lib.runtime.temporary import temporary_path  # imports msgspec, which no help text needs

    bucket, key = bucket_and_key(path)
    with writing_to_cache(path):
        if not os.path.isdir(os.path.dirname(path)):
            bucket.version(key)  # raises if there is no object, before its folder is created
            os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = temporary_path(Path(path))
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, 'O_CLOEXEC', 0), 0o666)
        try:
            version = bucket.download(key, descriptor)
            stamp(temporary, version, is_bulk)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        count(path, version.size)


def _upload(path: str) -> None:
    bucket, key = bucket_and_key(path)
    before = os.stat(path)
    version = bucket.upload(key, Path(path))
    after = os.stat(path)
    if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size):
        stamp(path, version)
    else:  # lines were appended, so that it is newer than its object, also if the clock of the server is ahead
        os.utime(path, (after.st_atime, max(after.st_mtime, version.seconds + 1)))


def _status_of(path: str) -> os.stat_result | None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise RefusedFileError(errno.EINVAL, 'is a folder in the cache, and a file in the bucket', path)
    return status


def _is_changed(path: Path) -> bool:
    return path.exists() and not is_clean(path.stat())


def _is_hidden(path: str) -> bool:
    """Return whether a file is one that stays here: a lock, a temporary file, or one in a temporary folder."""
    folder, name = os.path.split(path)
    if name.startswith('.') or '.tmp' not in folder:
        return name.startswith('.')
    from lib.runtime.temporary import is_temporary  # imports msgspec, which no help text needs

    return any(map(is_temporary, folder.replace(os.sep, '/').split('/')))


def bucket_and_key(path: str | os.PathLike) -> 'tuple[Bucket, str]':
    """Return the bucket of a path in the mirror, and the key of its object."""
    from lib.runtime.bucket import bucket_of  # its clients take time to import

    scheme, name, key = location(path)
    return bucket_of(scheme, name), key


def _lock_of(path: str) -> threading.Lock:
    return _locks[hash(path) % len(_locks)]


def _check(path: str) -> None:
    if len(_checked) < _MAX_CHECKED:
        _checked.add(path)


@contextmanager
def _reading() -> Iterator[None]:
    """Turn a refused request into an error for the user: data that is only absent by chance must never look absent."""
    try:
        yield
    except OSError as error:
        from lib.runtime.bucket import RefusedRequest

        if isinstance(error, RefusedRequest):
            raise UserError(f'{error.filename}: {error.strerror}') from None
        raise
