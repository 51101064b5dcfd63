"""Runs a script with a fault at one operation on its output files, or records all operations.

python inject.py PLAN.json SCRIPT [OPTION ...]. The plan is a JSON object:

record: file to write one line to for each operation: [event, name, count, changed]. `name` is the path from the working
    folder, without the random parts of temporary names; `count` numbers equal operations from 1; `changed` is
    true if the files differ from those at the line before.
at: [event, name, count] of the operation with the fault.
fault: 'kill' (SIGKILL), 'tear' (cut the file that was written, or remove half of the folder that is about to be
    removed, then kill) or the name of an error, such as ENOSPC.
limit: largest size of a file in bytes (RLIMIT_FSIZE); a larger one is written up to there, and then fails.
signals: seconds between signals whose handler does nothing, so that system calls are interrupted (EINTR).
patch: {'module:attribute': value}; a value that is a path replaces a path.
"""

import errno
import hashlib
import importlib
import json
import os
import re
import resource
import runpy
import signal
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from lib.runtime import files

_RANDOM = re.compile(r'\.([0-9a-f]{8}-[0-9a-f]+-[0-9a-f]+-)?[0-9a-f]{8}\.tmp')
_DIGEST = re.compile(r'-[0-9a-f]{16}\b')
_LOGS = re.compile(r'log\.txt|events\.out\.tfevents\..*|.*\.lock')


def name_of(path: Path) -> str:
    """Return a path from the working folder, without random parts and digests of the inodes of images."""
    return _DIGEST.sub('-DIGEST', _RANDOM.sub('.RANDOM.tmp', os.path.relpath(path)))


class Faults:
    """The hook of lib.runtime.files: counts operations, records them, and injects the fault of the plan."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._counts: Counter[tuple[str, str]] = Counter()
        self._digests: dict[tuple, str] = {}
        self._state = self._files() if 'record' in plan else []
        self._process = os.getpid()

    def __call__(self, event: str, path: Path) -> None:
        if os.getpid() != self._process:
            return  # a worker process
        key = (event, name_of(path))
        self._counts[key] += 1
        if 'record' in self._plan:
            state = self._files()
            with open(self._plan['record'], 'a', encoding='utf-8') as file:
                file.write(json.dumps([*key, self._counts[key], state != self._state]) + '\n')
            self._state = state
        if self._plan.get('at') == [*key, self._counts[key]]:
            self._fail(event, path)

    def _fail(self, event: str, path: Path) -> None:
        fault = self._plan['fault']
        if fault in ('kill', 'tear'):
            if fault == 'tear' and event == 'before unlink' and path.is_dir() and not path.is_symlink():
                names = sorted(name for name in path.rglob('*') if name.is_file())
                for name in names[: len(names) // 2]:
                    name.unlink()
            elif fault == 'tear' and event == 'after write' and path.is_file() and not path.is_symlink():
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, fault)
        raise OSError(number, os.strerror(number))

    def _files(self) -> list[tuple[str, str]]:
        """Return (name, digest) of all files below the working folder, except logs."""
        state = []
        for folder, folders, names in os.walk('.'):
            state += [(name_of(Path(folder, name)), 'folder') for name in folders]
            for name in names:
                path = os.path.join(folder, name)
                # A thread that saves a checkpoint may rename its file at this moment.
                with suppress(FileNotFoundError):
                    if not _LOGS.fullmatch(name):
                        state.append((name_of(Path(path)), self._digest(path)))
        return sorted(state)

    def _digest(self, path: str) -> str:
        if os.path.islink(path):
            return os.readlink(path)
        status = os.stat(path)
        key = (status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return self._digests[key]


def set_attributes(patch: dict[str, Any]) -> None:
    """Set attributes of modules, by MODULE:NAME; one that is a path remains a path."""
    for target, value in patch.items():
        module, _, attribute = target.partition(':')
        owner = importlib.import_module(module)
        setattr(owner, attribute, Path(value) if isinstance(getattr(owner, attribute), Path) else value)


def main() -> None:
    """Install the faults, then become the script."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding='utf-8'))
    set_attributes(plan.get('patch', {}))
    if 'limit' in plan:
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan['limit'], plan['limit']))
    if 'signals' in plan:
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.siginterrupt(signal.SIGALRM, True)
        signal.setitimer(signal.ITIMER_REAL, plan['signals'], plan['signals'])
    sys.argv[:] = sys.argv[2:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    files.on_operation = Faults(plan)
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
