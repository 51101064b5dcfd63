"""Folders of object storage as folders on the disk: an empty sparse file for each object, until it is opened."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lib.runtime.mirror import is_clean, is_mirrored, location, write_absent
from lib.runtime.storage import entries, fetch

_PARALLEL = 24
_outlined: set[str] = set()


def outline(folder: str | os.PathLike) -> None:
    """Create a file with the name and the size of each object in and below a folder, once per process.

    Opening such a file downloads the object (see lib/runtime/storage.py). Files that were downloaded before stay if
    size and time of the object are still theirs. Does nothing outside of the mirror, where there is no such folder, and
    for a web server, which has no list of its files.

    Raises:
        UserError: a request is refused or fails.
    """
    text = os.fspath(folder)
    if not is_mirrored(text) or text in _outlined or location(text)[0] == 'https':
        return
    with ThreadPoolExecutor(_PARALLEL) as pool:
        level = [text]
        while level:  # folder by folder, since a bucket lists a folder of millions of objects in one sequence
            level = [below for folders in pool.map(_outline_one, level) for below in folders]
    _outlined.add(text)


def _outline_one(folder: str) -> list[str]:
    """Create the files of one folder; return the folders in it."""
    try:
        found = {entry.name: entry for entry in entries(folder) if not entry.name.startswith('.')}
    except FileNotFoundError:
        return []
    os.makedirs(folder, exist_ok=True)
    folders = [os.path.join(folder, name) for name, entry in found.items() if entry.is_folder]
    here: dict[str, os.stat_result] = {}
    with os.scandir(folder) as scanned:
        for there in scanned:
            if not there.name.startswith('.') and there.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # another command removes it
                    here[there.name] = there.stat(follow_symlinks=False)
    for name in here.keys() - found.keys():
        if is_clean(here[name]):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
    for name, entry in found.items():
        if entry.is_folder:
            continue
        status, path = here.get(name), Path(folder, name)
        if status is not None:
            is_same = status.st_size == entry.size and int(status.st_mtime) == entry.seconds
            if is_same or not is_clean(status):  # or newer than its object
                continue
        write_absent(path, entry.size, entry.seconds)
    return folders


def is_available(path: str) -> bool:
    """Return whether a file exists; one of object storage is downloaded. Raises: UserError."""
    if is_mirrored(path):
        with suppress(OSError):
            fetch(path)
    return os.path.exists(path)
