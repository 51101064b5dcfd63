"""Runs main.py slowly and prints its phases, so that a test can kill it in a chosen one.

python in_phases.py STEP PIECE BATCH main.py [OPTION ...]: a line `phase: step`, `phase: save` or `phase: valid` comes
before each of them; the numbers are additional seconds of a step, of 256 kB of a checkpoint and of a validation batch.
"""

import os
import runpy
import sys
import time
from pathlib import Path

_PIECE_BYTES = 1 << 18


def main() -> None:
    """Patch the functions of the phases, then become the script, in a new process group."""
    os.setpgrp()
    (step_seconds, piece_seconds, batch_seconds), script = map(float, sys.argv[1:4]), sys.argv[4]
    sys.path.insert(0, str(Path(script).parent))
    from lib.inference.engine import EagerEngine
    from lib.trainer.checkpointing import io
    from lib.trainer.step import TrainStep
    from lib.trainer.validation import Validator

    _before(TrainStep, '__call__', 'step', step_seconds)
    _before(io, 'write_torch', 'save')
    _before(Validator, 'metrics', 'valid')
    _before(EagerEngine, 'features', '', batch_seconds)
    _slow_writes(io._CancelableWriter, piece_seconds)
    sys.argv[:] = sys.argv[4:]
    runpy.run_path(script, run_name='__main__')


def _before(owner: object, name: str, phase: str, seconds: float = 0.0) -> None:
    function = getattr(owner, name)

    def wrapped(*args, **kwargs):
        if phase:
            os.write(1, f'phase: {phase}\n'.encode())
        time.sleep(seconds)
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


def _slow_writes(pieces: type, seconds: float) -> None:
    write, pending = pieces.write, 0

    def slow(self, data):
        nonlocal pending
        for start in range(0, len(data), _PIECE_BYTES):
            piece = memoryview(data)[start : start + _PIECE_BYTES]
            write(self, piece)
            pending += len(piece)
            if pending >= _PIECE_BYTES:
                pending = 0
                time.sleep(seconds)
        return len(data)

    pieces.write = slow


if __name__ == '__main__':
    main()
