"""Runs main.py so that one can hit it where one wants: it says what it is about to do, and takes its time.

python in_phases.py STEP PIECE BATCH main.py [OPTION ...]: a line `phase: step`, `phase: save` or `phase: valid` comes
before each of them; the numbers are seconds that a step, 256 kB of a checkpoint and a batch of validation take more.
"""

import os
import runpy
import sys
import time
from pathlib import Path

_PIECE_BYTES = 1 << 18


def main() -> None:
    """Patch what is said and slowed down, then become the script, in a process group of its own."""
    os.setpgrp()
    (step_seconds, piece_seconds, batch_seconds), script = map(float, sys.argv[1:4]), sys.argv[4]
    sys.path.insert(0, str(Path(script).parent))
    from lib.commands.train import Training
    from lib.inference import run as evaluate
    from lib.trainer import step
    from lib.trainer.checkpointing import io as torch_file
    from lib.trainer.checkpointing import state as checkpoint

    _before(step, '_step', 'step', step_seconds)
    _before(checkpoint, 'write_torch', 'save')
    _before(Training, 'validate', 'valid')
    _before(evaluate, '_look', '', batch_seconds)
    _slow_writes(torch_file._Pieces, piece_seconds)
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
