"""Folders of results: locked by one command at a time, and renamed instead of overwritten."""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lib.errors import UserError
from lib.runtime.files import FILES_LOCK, finish_set, operation, remove_leftovers, sync_folder
from lib.runtime.locks import locked_file, open_lock
from lib.runtime.log import LOGGER
from lib.runtime.temporary import is_temporary
from lib.runtime.uploads import copy_folder, is_there, names_in, pushed, remove_objects

_LOCK = '.lock'
_LOCKS = (_LOCK, FILES_LOCK)
_TRIES = 3  # at a folder that another process renames


@contextmanager
def lock_folder(folder: Path, key: str = 'NAME') -> Iterator[None]:
    """Lock `folder`, which is created if needed, within the block. The system releases the lock of a killed process.

    At the end of the block, logs and other files that grew are uploaded if the folder is in the mirror of a bucket.

    `key`: option that selects another folder, for the error message.

    Raises:
        UserError: another process holds the lock.
    """
    path, file = folder / _LOCK, None
    for _ in range(_TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the folder was renamed at this moment
            file = locked_file(path)
            if file is not None:
                break
    if file is None:
        holder = ''
        with suppress(FileNotFoundError), open_lock(path) as held:
            holder = held.read(20).strip()
        raise UserError(
            f'{folder} is in use by another run (process {holder or "unknown"}); wait for it, or use another {key}'
        )
    with file:
        if file.writable():
            # Not through the buffer of the file, which would be written again after the error of a full disk.
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), str(os.getpid()).encode())
        remove_leftovers(folder)
        with pushed(folder):
            yield


@contextmanager
def fresh_folder(folder: Path, key: str, is_old: Callable[[], bool]) -> Iterator[None]:
    """Lock a folder within the block, after an earlier result in it was renamed to folder_old, folder_old_2, ...

    Args:
        key: as in `lock_folder`.
        is_old: called while the folder is locked, since another process may have written into it before; True: it holds
            an earlier result that is to be renamed. It raises UserError if it must not be.

    Raises:
        UserError: as `lock_folder` and `is_old`.
    """
    while True:
        with ExitStack() as stack:
            stack.enter_context(lock_folder(folder, key))
            if not is_old():
                yield
                return
            if os.name == 'nt':  # Windows renames no folder with an open file
                stack.close()
            LOGGER.info('renamed the earlier result to %s', _set_aside(folder))


def check_checkpoint_exists(path: Path, name: str) -> None:
    """Raise UserError if a checkpoint is missing, with those beside it; `name` names it. Without torch, so at once."""
    is_folder = path.is_dir()
    if is_folder or not path.exists():
        folder = path if is_folder else path.parent
        names = names_in(folder) | {other.name for other in folder.glob('*.pth')}
        others = [str(folder / name) for name in sorted(names) if name.endswith('.pth')][:5]
        fault = 'is a folder, not a file' if is_folder else 'no such file'
        raise UserError(f'{name}: {fault}' + (f'; there are {", ".join(others)}' if others else ''))


def has_content(folder: Path) -> bool:
    """Return whether a folder exists and holds more than locks and temporary files."""
    return bool(_content(folder))


def holds_others(folder: Path, names: Collection[str], last: str) -> bool:
    """Return whether a folder holds more than what a command that was stopped left: a result, or files of others.

    Args:
        names: names of the files that the command writes.
        last: the one that it writes last; a folder with it holds a result.
    """
    content = _content(folder)
    return last in content or not content <= {*names}


def _content(folder: Path) -> set[str]:
    names = names_in(folder)
    if folder.is_dir():
        finish_set(folder)
        names |= {path.name for path in folder.iterdir()}
    return {name for name in names if name not in _LOCKS and not is_temporary(name)}


def _set_aside(folder: Path) -> Path:
    number = 1
    while True:
        aside = folder.with_name(f'{folder.name}_old' + (f'_{number}' if number > 1 else ''))
        if not is_there(aside):
            copy_folder(folder, aside)
            with operation('replace', aside):
                folder.rename(aside)
            sync_folder(folder.parent)
            remove_objects(folder)
            return aside
        number += 1
