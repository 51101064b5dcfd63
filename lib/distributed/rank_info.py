"""The environment variables that torchrun sets for each process. Imports nothing heavy."""

import json
import os
import time
from contextlib import suppress
from typing import NamedTuple

from lib.errors import UserError, shown

_MAX_RANKS, _MAX_DIGITS = 1 << 20, 10
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
