"""The local mirror of buckets: the path of a URL, the version of a downloaded file, sparse files, and a size limit.

An object s3://bucket/key has the path CACHE/bucket-mirror/s3/bucket/key, so a path alone shows every process whether
it is in the mirror. A downloaded or uploaded file carries the version of its object in its modification time. Any other
file there is newer than its object, or not uploaded yet, and is never evicted. Shards, which are read by ranges, are
sparse files in CACHE/bucket-parts.
"""

import functools
import hashlib
import os
import posixpath
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lib.errors import UserError, url_scheme
from lib.runtime.locks import file_lock
from lib.runtime.read_file import MARK, reason_of

_PARTS = f'{os.sep}bucket-parts{os.sep}'
_USAGE, _LOCK, _DEFAULT_LIMIT = 'bucket-usage', '.bucket-usage.lock', 50 << 30
_USAGE_FORM = struct.Struct('<qq')  # bytes in use, limit


def default_cache() -> Path:
    """Return the folder for cached objects in the cache folder of the user."""
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'product-recognition'


@dataclass
class _Settings:
    """The cache of this process; others take it from the paths that they are given."""

    root: str = ''


_settings = _Settings()


def configure(cache: str | os.PathLike, limit_bytes: int) -> None:
    """Set the cache folder ('': the default), and its size limit for all processes of the machine that share it."""
    root = Path(cache).expanduser().absolute() if os.fspath(cache) else default_cache()
    _settings.root = str(root)
    with _usage(_settings.root) as usage:
        usage.limit = limit_bytes


def is_url(text: str) -> bool:
    """Return whether a text is the URL of an object or a folder that is mirrored."""
    return bool(url_scheme(text))


def is_mirrored(path: str | os.PathLike) -> bool:
    """Return whether a local path is that of an object."""
    return MARK in os.fspath(path)


def local_path(url: str) -> Path:
    """Return the path in the mirror. Raises: UserError for a URL of which no file has the name."""
    scheme, _, rest = url.strip().partition('://')
    parts = [part for part in rest.split('/') if part not in ('', '.')]
    if not parts or '..' in parts:
        raise UserError(f'{url}: is not the address of a bucket, an object or a folder')
    _settings.root = _settings.root or str(default_cache())
    return Path(_settings.root + MARK + os.sep.join((scheme.lower(), *parts)))


def url_of(path: str | os.PathLike) -> str:
    """Return the URL of a path in the mirror; any other path as text."""
    text = os.fspath(path)
    _, mark, rest = text.partition(MARK)
    if not mark:
        return text
    scheme, _, address = rest.replace(os.sep, '/').partition('/')
    return f'{scheme}://{address}'


def with_urls(text: str) -> str:
    """Return a text, such as a message, with URLs in place of paths in this process's mirror."""
    folder = _settings.root + MARK
    if not _settings.root or folder not in text:
        return text
    first, *others = text.split(folder)
    return first + ''.join(other.replace('/', '://', 1) for other in others)


def location(path: str | os.PathLike) -> tuple[str, str, str]:
    """Return scheme, bucket and key of a path in the mirror. Raises: FileNotFoundError, if it leaves the bucket."""
    scheme, _, address = os.fspath(path).partition(MARK)[2].replace(os.sep, '/').partition('/')
    bucket, _, key = address.partition('/')
    key = posixpath.normpath(key) if key else ''
    if not bucket or key.startswith('..'):
        raise FileNotFoundError(2, 'is outside of the bucket', os.fspath(path))
    return scheme, bucket, '' if key == '.' else key


# The last digits of the modification time, in nanoseconds, of files that equal their object. Bulk is evicted first; of
# a file that is only listed, the content is absent.
_NAMED, _BULK, _ABSENT, _TAG_RANGE = 77_771, 77_773, 77_775, 100_000
_TAGS = (_NAMED, _BULK, _ABSENT)


@dataclass(frozen=True)
class Version:
    """Size of an object, time of its last change in seconds, and a text that changes with it (the ETag)."""

    size: int
    seconds: int
    tag: str

    def stamp(self, is_bulk: bool = False) -> int:
        """Return the modification time of a file with this content, in nanoseconds."""
        digits = int.from_bytes(hashlib.sha256(self.tag.encode()).digest()[:4], 'big') % (10**9 // _TAG_RANGE)
        return self.seconds * 10**9 + digits * _TAG_RANGE + (_BULK if is_bulk else _NAMED)

    def is_of(self, status: os.stat_result) -> bool:
        """Return whether a file of the mirror has this version."""
        stamps = [self.stamp(is_bulk) for is_bulk in (False, True)]
        return status.st_size == self.size and status.st_mtime_ns in stamps


def is_clean(status: os.stat_result) -> bool:
    """Return whether a file of the mirror was not changed after it was downloaded or uploaded."""
    return status.st_mtime_ns % _TAG_RANGE in _TAGS


def stamp(path: str | os.PathLike, version: Version, is_bulk: bool = False) -> None:
    """Mark a file as equal to its object."""
    os.utime(path, ns=(time.time_ns(), version.stamp(is_bulk)))


def write_absent(path: Path, size: int, seconds: int) -> None:
    """Replace a file by an empty one of `size` bytes, whose content is downloaded when it is opened.

    By a rename, since a file without the mark would be uploaded if this process was killed before it set the mark.

    Args:
        seconds: time of the last change of its object.
    """
    from lib.runtime.temporary import temporary_path  # imports msgspec, which no help text needs

    temporary = temporary_path(path)
    temporary.touch()
    os.truncate(temporary, size)
    os.utime(temporary, ns=(time.time_ns(), seconds * 10**9 + _ABSENT))
    os.replace(temporary, path)


def is_here(path: str | os.PathLike) -> bool:
    """Return whether the content of a file of the mirror is on the disk."""
    try:
        return os.stat(path).st_mtime_ns % _TAG_RANGE != _ABSENT
    except (OSError, ValueError):
        return False


@contextmanager
def writing_to_cache(path: str | os.PathLike) -> Iterator[None]:
    """Turn an error of the disk that the mirror is on into one for the user; errors of requests name URLs."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) or is_url(str(error.filename or '')):
            raise
        advice = 'free some space on its disk, or set another --STORAGE_CACHE'
        raise UserError(f'{path}: cannot be written to the cache ({reason_of(error)}); {advice}') from None


def open_sparse(path: str | os.PathLike, size: int) -> int:
    """Open the file for the downloaded ranges of an object of `size` bytes; return its descriptor, open for writing."""
    root, _, rest = os.fspath(path).partition(MARK)
    parts = Path(root + _PARTS + rest)
    parts.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(parts, os.O_RDWR | os.O_CREAT | getattr(os, 'O_CLOEXEC', 0), 0o666)
    try:
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, size)
        os.utime(parts)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def has_hole(descriptor: int, offset: int, length: int) -> bool:
    """Return whether a range of a sparse file surely has bytes that were not written; False where that is unknown."""
    if not hasattr(os, 'SEEK_HOLE'):
        return False
    try:
        return os.lseek(descriptor, offset, os.SEEK_HOLE) < offset + length
    except OSError:  # behind the end, or a file system without holes
        return False


_COUNT_BYTES = 16 << 20  # each process reports what it added in steps of so many bytes
_HIGH, _LOW = 0.95, 0.85  # of the limit: above, files are evicted until they are below
_PROTECTED_SECONDS = 7 * 24 * 3600
_uncounted: dict[str, int] = {}
_counting = threading.Lock()


def count(path: str | os.PathLike, num_bytes: int) -> None:
    """Count bytes that were added to the mirror of `path`; evict files if all processes added too many."""
    root = os.fspath(path).partition(MARK)[0]
    with _counting:
        waiting = _uncounted[root] = _uncounted.get(root, 0) + num_bytes
        if waiting < min(_COUNT_BYTES, _limit(root) // 64):
            return
        _uncounted[root] = 0
    with _usage(root) as usage:
        usage.used += waiting
        limit, assumed = usage.limit, int(_LOW * usage.limit)
        if usage.used <= _HIGH * limit:
            return
        usage.used = assumed  # so that no other process evicts, too
    used = evict(root, limit)
    with _usage(root) as usage:
        usage.used += used - assumed


def limit_of(path: str | os.PathLike) -> int:
    """Return the limit of the cache of a path in the mirror, in bytes."""
    return _limit(os.fspath(path).partition(MARK)[0])


@functools.lru_cache(maxsize=4)
def _limit(root: str) -> int:
    with _usage(root) as usage:
        return usage.limit


def evict(root: str, limit_bytes: int) -> int:
    """Remove the least recently used files until those below `root` take less than the limit; return their bytes.

    Sparse files lose their blocks, since other processes have them open. Files that differ from their object stay, as
    do those that commands were given, if they were used within a week.
    """
    used, candidates, now = 0, [], time.time()
    for path, status in _files(root):
        num_bytes = getattr(status, 'st_blocks', -(-status.st_size // 512)) * 512
        used += num_bytes
        is_part = path.startswith(root + _PARTS)
        last_used = max(status.st_atime, status.st_ctime)
        is_named = not is_part and status.st_mtime_ns % _TAG_RANGE == _NAMED
        if is_part or (is_clean(status) and not (is_named and now - last_used < _PROTECTED_SECONDS)):
            candidates.append((last_used, path, num_bytes, status.st_size if is_part else -1))
    if used <= _HIGH * limit_bytes:
        return used
    for _, path, num_bytes, size in sorted(candidates):
        if used <= _LOW * limit_bytes:
            break
        with suppress(OSError):
            if size < 0:
                os.unlink(path)
            else:
                os.truncate(path, 0)
                os.truncate(path, size)
            used -= num_bytes
    return used


def _files(root: str) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [root + MARK, root + _PARTS]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif stat.S_ISREG((status := entry.stat(follow_symlinks=False)).st_mode):
                        yield entry.path, status


@dataclass
class _Usage:
    used: int
    limit: int


@contextmanager
def _usage(root: str) -> Iterator[_Usage]:
    """Yield bytes in use and limit of a cache, and write them at the end of the block; other processes wait."""
    path = Path(root, _USAGE)
    with file_lock(path.with_name(_LOCK)) as acquire:
        while not acquire():
            time.sleep(0.002)
        try:
            usage = _Usage(*_USAGE_FORM.unpack(path.read_bytes()))
        except (OSError, struct.error):
            usage = _Usage(0, _DEFAULT_LIMIT)
        before = _USAGE_FORM.pack(usage.used, usage.limit)
        yield usage
        if (after := _USAGE_FORM.pack(usage.used, usage.limit)) != before or not path.exists():
            path.write_bytes(after)
