"""The environment variables that torchrun sets for each process. Imports nothing heavy."""

import json
import os
import time
from typing import NamedTuple


class RankInfo(NamedTuple):
    """Rank of this process, number of processes, and index of this process on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def read_rank_info() -> RankInfo:
    """Return the RankInfo of this process; without torchrun, that of a single process."""
    if 'RANK' not in os.environ or 'WORLD_SIZE' not in os.environ:
        return RankInfo()
    return RankInfo(int(os.environ['RANK']), int(os.environ['WORLD_SIZE']), int(os.environ.get('LOCAL_RANK', 0)))


def was_restarted() -> bool:
    """Return whether torchrun restarted this process (--max-restarts), with the command line of the first start."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0


def report_failure(message: str) -> None:
    """Write the message into torchrun's error file; do nothing without torchrun."""
    file = os.environ.get('TORCHELASTIC_ERROR_FILE')
    if file:
        error = {'message': message, 'extraInfo': {'py_callstack': message, 'timestamp': str(int(time.time()))}}
        with open(file, 'w', encoding='utf-8') as out:
            json.dump({'message': error}, out)
