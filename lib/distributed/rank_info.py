"""The environment variables that torchrun sets for each process. Imports nothing heavy."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lib.errors import UserError, shown

_MAX_RANKS, _MAX_DIGITS = 1 << 20, 10
_POLL_SECONDS = 0.05
_START = 'torchrun sets it, and without torchrun, RANK and WORLD_SIZE must not be set (unset RANK WORLD_SIZE)'


class RankInfo(NamedTuple):
    """Rank of this process, number of processes, and index of this process on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def read_rank_info() -> RankInfo:
    """Return the RankInfo of this process; without torchrun, that of a single process.

    Raises:
        UserError: a variable is not a whole number in its range.
    """
    if 'RANK' not in os.environ or 'WORLD_SIZE' not in os.environ:
        return RankInfo()
    world_size = _number('WORLD_SIZE', range(1, _MAX_RANKS + 1))
    rank, local_rank = _number('RANK', range(world_size)), _number('LOCAL_RANK', range(world_size), default='0')
    return RankInfo(rank, world_size, local_rank)


def check_address() -> None:
    """Check the address of rank 0, which torch reads. Raises: UserError."""
    _number('MASTER_PORT', range(1, 1 << 16))
    if not os.environ.get('MASTER_ADDR'):
        raise UserError(f'the environment variable MASTER_ADDR is missing; {_START}')


def was_restarted() -> bool:
    """Return whether torchrun restarted this process (--max-restarts), with the command line of the first start."""
    return _number('TORCHELASTIC_RESTART_COUNT', range(1 << 31), default='0') > 0


def _number(name: str, allowed: range, default: str = '') -> int:
    """Return a whole number in an environment variable. Raises: UserError."""
    text = os.environ.get(name, default)
    if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS and int(text) in allowed:
        return int(text)
    found = shown(text) if text else 'missing'
    span = f'a number from {allowed.start} to {allowed.stop - 1}'
    raise UserError(f'the environment variable {name} is {found}, but must be {span}; {_START}')


def report_failure(message: str) -> None:
    """Write the message into torchrun's error file; do nothing without torchrun."""
    file = os.environ.get('TORCHELASTIC_ERROR_FILE')
    if file:
        error = {'message': message, 'extraInfo': {'py_callstack': message, 'timestamp': str(int(time.time()))}}
        with suppress(OSError), open(file, 'w', encoding='utf-8') as out:  # the line is on standard error, too
            json.dump({'message': error}, out)


def first_rank_reports(message: str, seconds: float = 2.0) -> bool:
    """Return whether the first rank of this machine fails with the same message, now or within `seconds`.

    All ranks find a mistake of the user, and one of them prints it. torchrun places the files of `report_failure` in
    one folder per local rank; without torchrun, the result is False.
    """
    file = Path(os.environ.get('TORCHELASTIC_ERROR_FILE', ''))
    rank = os.environ.get('LOCAL_RANK', '0')
    if rank == '0' or file.parent.name != rank:
        return False
    first, end = file.parent.with_name('0') / file.name, time.monotonic() + seconds
    with suppress(KeyboardInterrupt, SystemExit):  # torchrun ends the other ranks once one has failed
        while _reported_message(first) is None and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
    return _reported_message(first) == message


def _reported_message(file: Path) -> str | None:
    try:
        return json.loads(file.read_text(encoding='utf-8'))['message']['message']
    except (OSError, ValueError):  # not yet, or not all of it
        return None
