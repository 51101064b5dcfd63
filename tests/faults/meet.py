"""Runs a script that waits for others before it first changes or locks a file, then a random time at each operation.

python meet.py PLAN.json SCRIPT [OPTION ...]. The plan is a JSON object:

arrivals: folder in which each process leaves a file when it arrives.
processes: number of processes that meet; a process waits for them for some seconds.
seed: of the random times.
patch: as in inject.py.
"""

import json
import os
import random
import runpy
import sys
import time
from pathlib import Path

from lib.runtime import files, locks
from lib.trainer import run_folder
from tests.faults.inject import set_attributes

_WAIT_SECONDS, _LONGEST_PAUSE = 5.0, 0.01


def main() -> None:
    """Install the waiting, then become the script."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding='utf-8'))
    set_attributes(plan.get('patch', {}))
    arrivals, dice, process, has_met = Path(plan['arrivals']), random.Random(plan['seed']), os.getpid(), False

    def pause() -> None:
        nonlocal has_met
        if os.getpid() != process:
            return  # a worker process
        if not has_met:
            has_met = True
            (arrivals / str(process)).touch()
            end = time.monotonic() + _WAIT_SECONDS
            while len(list(arrivals.iterdir())) < plan['processes'] and time.monotonic() < end:
                time.sleep(0.001)
        time.sleep(dice.uniform(0, _LONGEST_PAUSE))

    open_lock = locks.open_lock

    def open_after_pause(path):
        pause()
        return open_lock(path)

    locks.open_lock = open_after_pause
    files.on_operation = lambda event, path: pause()
    run_folder.describe_commit = lambda: 'unchanged'  # between the runs that a test compares
    sys.argv[:] = sys.argv[2:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
