"""The rank that has ended when the others lose their connection to it. Imports nothing heavy."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lib.runtime.memory_kills import num_killed, reason_of_kill

_PROC = Path('/proc')
_POLL_SECONDS = 0.02
_EXIT_CODE = 49  # its index among the fields of /proc/PID/stat after the name, see proc(5)
_processes: list[tuple[str, int]] = []  # of all ranks


class LostRank(NamedTuple):
    """A rank whose process has ended; `signal`: that ended it, 0 for an exit, None if unknown."""

    rank: int
    signal: int | None


def own_process() -> tuple[str, int]:
    """Return the machine, or container, and the ID of this process; processes of one machine see each other."""
    try:
        boot = (_PROC / 'sys/kernel/random/boot_id').read_text(encoding='ascii').strip()
        return f'{boot} {os.readlink(_PROC / "self/ns/pid")}', os.getpid()
    except OSError:  # another system than Linux
        return '', os.getpid()


def remember_processes(processes: list[tuple[str, int]]) -> None:
    """Note `own_process` of all ranks."""
    _processes[:] = processes


def find_lost_rank(seconds: float = 2.0) -> LostRank | None:
    """Return the rank of this machine that has ended; None: there is none after `seconds`, or the system hides it.

    A connection is closed shortly before its process has ended.
    """
    machine = own_process()[0]
    end = time.monotonic() + seconds
    while machine and any(there == machine and process != os.getpid() for there, process in _processes):
        for rank, (there, process) in enumerate(_processes):
            if there == machine and process != os.getpid():
                ended, number = _state_of(process)
                if ended:
                    return LostRank(rank, number)
        if time.monotonic() > end:
            break
        time.sleep(_POLL_SECONDS)
    return None


def _state_of(process: int) -> tuple[bool, int | None]:
    """Return whether a process has ended, and the signal, as long as its parent has not collected its exit code."""
    try:
        text = (_PROC / str(process) / 'stat').read_text(encoding='utf-8', errors='replace')
    except OSError:
        return True, None
    fields = text.rpartition(')')[2].split()
    if not fields or fields[0] not in 'ZX':
        return False, None
    code = fields[_EXIT_CODE] if len(fields) > _EXIT_CODE else ''
    return True, int(code) & 0x7F if code.isdecimal() else None


def describe_lost_rank() -> str:
    """Return the error line of a rank that has lost the connection to another one, with the probable cause."""
    lost = None
    with suppress(KeyboardInterrupt, SystemExit):  # torchrun ends the other ranks, too
        lost = find_lost_rank()
    rank = 'another rank' if lost is None else f'rank {lost.rank}'
    if lost is not None and (lost.signal == signal.SIGKILL or (lost.signal is None and num_killed())):
        if num_killed() == 0:
            return (
                f'{rank} was killed (SIGKILL), so this one ends, too; the kernel counts no lack of memory (oom_kill), '
                'so a person, a batch system or another program did it'
            )
        return (
            f'{rank} was killed (SIGKILL), {reason_of_kill()}, so this one ends, too; a smaller --RUN_NUM_WORKERS, '
            'TRAIN.BATCH_SIZE or INPUT.SIZE needs less'
        )
    if lost is not None and lost.signal:
        with suppress(ValueError):
            return f'{rank} was ended by {signal.Signals(lost.signal).name}, so this one ends, too'
    return f'{rank} has ended, so this one ends, too; see the error line of that rank'
