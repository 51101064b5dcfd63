"""Runs a script and records which checkpoint files it reads: python count_reads.py FILE main.py [OPTION ...].

FILE gets a line with the path for every read.
"""

import functools
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    """Patch the functions that open a checkpoint, then become the script."""
    log, script = Path(sys.argv[1]), sys.argv[2]
    log.touch()
    sys.path.insert(0, str(Path(script).parent))
    from lib.trainer.checkpointing import io

    torch.load = _recorded(torch.load, log)
    io.safe_open = _recorded(io.safe_open, log)
    sys.argv[:] = sys.argv[2:]
    runpy.run_path(script, run_name='__main__')


def _recorded(function: Callable[..., Any], log: Path) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(path, *args, **kwargs):
        with log.open('a') as file:
            file.write(f'{path}\n')
        return function(path, *args, **kwargs)

    return wrapped


if __name__ == '__main__':
    main()
