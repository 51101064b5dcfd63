"""Scripts in the test's own process, for mistakes that end a script before it trains. It saves the start-up."""

import contextlib
import io
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lib.runtime.log import LOGGER
from tests.scripts.running import REPOSITORY


def run_in_process(folder: Path, script: str, *options: object) -> subprocess.CompletedProcess:
    """Return the outcome of `python script options...` in `folder`, as Scripts.run() does."""
    command = [str(REPOSITORY / script), *map(str, options)]
    stdout, stderr = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    redirected = (contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr))
    with _own_state(command), contextlib.chdir(folder), redirected[0], redirected[1]:
        try:
            runpy.run_path(command[0], run_name='__main__')
        except SystemExit as error:
            code = error.code
    return subprocess.CompletedProcess(command, code or 0, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def _own_state(command: list[str]) -> Iterator[None]:
    """Set sys.argv, with the logger of a fresh process."""
    argv, path = sys.argv[:], sys.path[:]
    sys.argv[:] = command
    try:
        with fresh_logger():
            yield
    finally:
        sys.argv[:], sys.path[:] = argv, path


@contextlib.contextmanager
def fresh_logger() -> Iterator[None]:
    """Within the block the logger has no handlers, as in a fresh process."""
    handlers, level, propagate = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    LOGGER.handlers[:] = []
    try:
        yield
    finally:
        for handler in LOGGER.handlers:
            handler.close()
            getattr(handler, 'records', []).clear()  # those that wait for a log file
        LOGGER.handlers[:] = handlers
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate
