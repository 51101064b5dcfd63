"""Changes of folders in the mirror of a bucket: appended files, removed and renamed folders, and what is there already.

A file that is replaced is uploaded by lib/runtime/files.py. All functions do nothing outside of the mirror. They raise
OSError if a request is refused or fails, and UserError where they only read.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from lib.runtime.locks import removed_lock
from lib.runtime.mirror import is_clean, is_mirrored, location, open_sparse, write_absent
from lib.runtime.outline import outline
from lib.runtime.storage import bucket_and_key, entries, publish, pull, sync_object

# Endings of large files of a run, which are downloaded when they are opened.
_BULK = ('.pth', '.safetensors', '.npy')
_PARALLEL = 16
_LOCK, _LOCK_SECONDS, _TRIES = '.download.lock', 3600, 1000
_refreshed: set[tuple[Path, tuple[str, ...]]] = set()  # with the endings that were left out


def push(folder: Path) -> None:
    """Upload the files of a folder, without those in its folders, that were changed after they were uploaded."""
    for path in _changed_files(folder):
        with suppress(FileNotFoundError):  # removed by another thread at this moment
            publish(path)


def finish_uploads(folder: Path, pattern: str = '*') -> None:
    """Upload files of a folder that a killed process left, unless their objects are newer."""
    for path in _changed_files(folder, pattern):
        sync_object(str(path))


def _changed_files(folder: Path, pattern: str = '*') -> list[Path]:
    if not is_mirrored(folder) or not folder.is_dir():
        return []
    files = [path for path in sorted(folder.glob(pattern)) if path.name[0] != '.' and path.is_file()]
    return [path for path in files if not is_clean(path.stat())]


@contextmanager
def pushed(folder: Path) -> Iterator[None]:
    """Upload the files of a folder that the block has changed, at its end; after an error, as far as possible.

    After Ctrl-C or another signal that ends the process at once, they stay here for the next command.
    """
    try:
        yield
    except Exception:
        with suppress(OSError):  # the first error is the one to report
            push(folder)
        raise
    push(folder)


def refresh(folder: Path, without: tuple[str, ...] = _BULK) -> None:
    """Bring a folder of results up to date, once per process, and upload what a killed process left there.

    Files with the endings `without` ('': all) are downloaded when they are opened. Ranks of a machine wait for the
    first one. Raises: UserError.
    """
    if not is_mirrored(folder) or (folder.absolute(), without) in _refreshed or location(folder)[0] == 'https':
        return
    for attempt in range(_TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with removed_lock(folder / _LOCK, _LOCK_SECONDS):
                with suppress(FileNotFoundError):
                    outline(folder)
                pull(folder, without=without)
            break
        except FileNotFoundError:  # another process, which has found nothing there, has just removed the folder
            if attempt + 1 == _TRIES:
                raise
    with suppress(OSError):
        folder.rmdir()  # nothing there: an empty folder has no meaning in a bucket
    _refreshed.add((folder.absolute(), without))


def names_in(folder: Path) -> set[str]:
    """Return the names of the files and folders in a bucket's folder; none if there is no such folder."""
    if not is_mirrored(folder):
        return set()
    try:
        return {entry.name for entry in entries(folder)}
    except FileNotFoundError:
        return set()


def is_there(path: Path) -> bool:
    """Return whether a file or folder exists on the disk or in the bucket."""
    if os.path.lexists(path) or not is_mirrored(path):
        return os.path.lexists(path)
    bucket, key = bucket_and_key(path)
    return bool(bucket.kind(key))


def is_published(path: Path) -> bool:
    """Return whether a file exists, in a bucket too if it belongs there."""
    if is_mirrored(path) and path.exists():
        return is_clean(path.stat())
    return is_there(path)


def release(path: Path) -> None:
    """Free the disk space of a file that was uploaded, and of ranges of an earlier one; its name and size remain."""
    if is_mirrored(path):
        status = path.stat()
        write_absent(path, status.st_size, int(status.st_mtime))
        forget_ranges(path, status.st_size)


def forget_ranges(path: Path, size: int) -> None:
    """Forget the downloaded ranges of an object, so that they are read from the bucket again."""
    if is_mirrored(path):
        descriptor = open_sparse(path, size)
        try:
            os.truncate(descriptor, 0)
            os.truncate(descriptor, size)
        finally:
            os.close(descriptor)


def copy_folder(folder: Path, other: Path) -> None:
    """Copy all objects of a folder within its bucket, on the server."""
    if not is_mirrored(folder):
        return
    finish_uploads(folder, '**/*')
    bucket, key = bucket_and_key(folder)
    _, target = bucket_and_key(other)
    try:
        names = [entry.name for entry in bucket.entries(key, recursive=True) if not entry.is_folder]
    except FileNotFoundError:
        return
    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(lambda name: bucket.copy(f'{key}/{name}', f'{target}/{name}'), names))


def remove_objects(folder: Path) -> None:
    """Remove all objects of a folder."""
    if is_mirrored(folder) and folder.name[0] != '.':
        bucket, key = bucket_and_key(folder)
        bucket.remove_folder(key)
