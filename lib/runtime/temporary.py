"""Temporary files: names that identify their process, and the journal of those that will be renamed together."""

import functools
import hashlib
import json
import os
import re
import socket
import stat
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from lib.errors import UserError, shown
from lib.runtime.read_file import MAX_RECORD_BYTES, read_bytes

# .STEM.OWNER.tmp.SUFFIX; the owner is machine, process id, its start, and a random number, or the last one alone.
_NAME = re.compile(r'\..+\.((?P<owner>[0-9a-f]{8}-[0-9a-f]+-[0-9a-f]+)-)?[0-9a-f]{8}\.tmp(\.\w+)?', re.DOTALL)
_MAX_STEM = 40  # characters, so that a long name can be lengthened
# A file of another machine, or of another container on a shared disk: no longer written to.
_FOREIGN_SECONDS = 24 * 3600


def temporary_path(path: Path) -> Path:
    """Return a new hidden name in the folder of `path`, for a file or folder that will be renamed to `path`.

    It has the same suffix, because writers such as matplotlib select the format by it.
    """
    return path.with_name(f'.{path.stem[:_MAX_STEM]}.{_owner(os.getpid())}-{uuid.uuid4().hex[:8]}.tmp{path.suffix}')


def is_temporary(name: str) -> bool:
    """Return whether a file name is one of `temporary_path`."""
    return _NAME.fullmatch(name) is not None


def is_abandoned(path: Path) -> bool:
    """Return whether a path is a temporary one whose process has ended.

    If the process ran on another machine, in another container or in an older version, the path counts as abandoned
    after a day without changes.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        return False
    machine, _, process = (match['owner'] or '').partition('-')
    if machine == _machine() and os.name != 'nt':
        pid = int(process.partition('-')[0], 16)
        return _process(pid) not in (process, _without_start(pid))
    try:
        return time.time() - path.lstat().st_mtime > _FOREIGN_SECONDS
    except OSError:  # it was renamed at this moment
        return False


@functools.lru_cache(maxsize=1)
def _owner(pid: int) -> str:
    return f'{_machine()}-{_process(pid)}'


@functools.cache
def _machine() -> str:
    """Return a number of all processes that see each other's ids: of a machine since its start, or of a container."""
    parts = [socket.gethostname()]
    for read in (lambda: Path('/proc/sys/kernel/random/boot_id').read_text(), lambda: os.readlink('/proc/self/ns/pid')):
        try:
            parts.append(read())
        except OSError:  # not Linux
            parts.append('')
    return hashlib.sha256('\n'.join(parts).encode('utf-8', 'replace')).hexdigest()[:8]


def _process(pid: int) -> str:
    """Return id and start of a process, 'PID-START', with start 0 if it is unknown; '' if there is no such process."""
    try:
        # The name of the program, in parentheses, may contain anything. Then: state, ..., start in clock ticks.
        fields = Path(f'/proc/{pid}/stat').read_text(encoding='latin-1').rpartition(')')[2].split()
        return '' if fields[0] in 'ZX' else f'{pid:x}-{int(fields[19]):x}'
    except OSError:  # ended, or of another user where /proc hides those, or not Linux
        return _without_start(pid) if os.name == 'nt' or _exists(pid) else ''


def _without_start(pid: int) -> str:
    return f'{pid:x}-0'


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # on Windows, this would end the process
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


class SetFile(msgspec.Struct):
    """One file of a set that is switched together: its temporary name, its name, its bytes."""

    temporary: str
    name: str
    size: int


def journal_of(files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the content of a journal: temporary files by the names that they will have."""
    return [{'temporary': file.name, 'name': name, 'size': file.stat().st_size} for name, file in files.items()]


def read_journal(path: Path) -> list[SetFile] | None:
    """Return the files in a journal, some of which may be renamed already; None if there is no journal.

    Raises:
        UserError: it is damaged, names files outside of its folder, or a file is missing or has another size.
    """
    try:
        files = msgspec.convert(json.loads(read_bytes(path, max_bytes=MAX_RECORD_BYTES)), list[SetFile])
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):  # those of json and msgspec are ValueErrors
        raise _useless(path, 'is damaged') from None
    for file in files:
        if not is_temporary(file.temporary) or not _is_name(file.temporary) or not _is_name(file.name):
            raise _useless(path, f'names {shown(file.name)}, which is no file of its folder')
        size = _size_of(path.with_name(file.temporary))
        if (size if size >= 0 else _size_of(path.with_name(file.name))) != file.size:
            raise _useless(path, f'has a {shown(file.name)} that is missing or damaged')
    return files


def _useless(journal: Path, fault: str) -> UserError:
    return UserError(
        f'{journal}: a command was stopped while it replaced files that belong together, and they cannot be completed, '
        f'since the list {fault}; remove the list, then run that command again'
    )


def _is_name(text: str) -> bool:
    return Path(text).name == text and text not in ('', '..') and '\0' not in text


def _size_of(path: Path) -> int:
    """Return the bytes of a file; -1 if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1
