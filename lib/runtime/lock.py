"""A folder that one run at a time writes into."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.errors import UserError

_NAME = '.lock'


@contextmanager
def locked(folder: Path, key: str = 'NAME') -> Iterator[None]:
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
