"""Files that are either the old ones or the new ones, never half of each.

A folder that one run at a time writes into.
"""

import json
import os
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.errors import UserError


@contextmanager
def replace_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place, durably, once the block ends well.

    The folder is made if needed. On any exception the temporary file is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept, since writers such as matplotlib choose their format by it.
    temporary = path.with_name(f'.{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}')
    try:
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        # A full disk shows while writing, where the system names no file; nobody knows the temporary one.
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, suffixes: Collection[str]) -> None:
    """Remove temporary files that a killed process left in `folder`: those of `replacing` with one of these endings.

    For whoever is known to be the only one that writes such files there.
    """
    for path in folder.glob('.*.tmp.*'):
        if path.suffix in suffixes and re.fullmatch(r'\..+\.[0-9a-f]{8}\.tmp\.\w+', path.name):
            path.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Replace the file at `path` by `data`, atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replace the file at `path` by `text` in UTF-8, atomically."""
    write_bytes(path, text.encode('utf-8'))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Replace the file at `path` by `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + '\n')


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut. Windows cannot open folders; there the rename has to do."""
    if os.name == 'nt':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_NAME = '.lock'


@contextmanager
def lock_folder(folder: Path, key: str = 'NAME') -> Iterator[None]:
    """Hold `folder` (made if needed) for this process. The system lets go of it whatever ends the process.

    `key`: what to change to work in another folder, for the message.

    Raises:
        UserError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _NAME, 'a+', encoding='ascii') as file:
        if not _acquire(file):
            file.seek(0)
            holder = file.read().strip() or 'unknown'
            raise UserError(
                f'{folder} is in use by another run (process {holder}); wait for it, or give this one another {key}'
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _acquire(file) -> bool:
    try:
        if os.name == 'nt':
            import msvcrt

            # Far behind the text, so that another process can still read who holds it.
            file.seek(1 << 20)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
