"""What torchrun says in the environment of each of its processes. Imports nothing heavy."""

import json
import os
import time
from typing import NamedTuple


class Place(NamedTuple):
    """A process among those of the run: its rank, how many there are, its number on this machine."""

    rank: int = 0
    count: int = 1
    local: int = 0


def place() -> Place:
    """Return this process's place; the only one where torchrun did not start it."""
    if 'RANK' not in os.environ or 'WORLD_SIZE' not in os.environ:
        return Place()
    return Place(int(os.environ['RANK']), int(os.environ['WORLD_SIZE']), int(os.environ.get('LOCAL_RANK', 0)))


def was_restarted() -> bool:
    """Whether torchrun started this process anew (--max-restarts), with the command line of the first time."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0


def tell_failure(message: str) -> None:
    """Leave the message where torchrun looks for the reason of a failure; elsewhere nobody looks."""
    file = os.environ.get('TORCHELASTIC_ERROR_FILE')
    if file:
        told = {'message': message, 'extraInfo': {'py_callstack': message, 'timestamp': str(int(time.time()))}}
        with open(file, 'w', encoding='utf-8') as out:
            json.dump({'message': told}, out)
