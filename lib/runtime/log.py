"""One logger: lines to the terminal and to log.txt, progress bars that stay out of pipes."""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar('Item')
LOGGER = logging.getLogger('recognizer')


class _Console(logging.Handler):
    """Writes through tqdm, so that a line does not tear a bar."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        tqdm.write(self.format(record), file=stream)
        stream.flush()


class _File(logging.FileHandler):
    """A full disk is the run's error, not a traceback between its lines."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


class _Early(logging.Handler):
    """Keeps what is said before there is a log.txt."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _WithLevel(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f'warning: {text}' if record.levelno >= logging.WARNING else text


_EARLY = _Early()


def start_console(*, speaks: bool = True) -> None:
    """Send log lines to the terminal (warnings to standard error); of several ranks, let one speak."""
    if not speaks:
        LOGGER.disabled = True
    elif not LOGGER.handlers:
        console = _Console()
        console.setFormatter(_WithLevel('%(message)s'))
        LOGGER.addHandler(console)
        LOGGER.addHandler(_EARLY)
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False


def log_to(path: Path) -> None:
    """Send log lines, those said so far included, to the end of the file at `path` too, with the time in front."""
    handler = _File(path, encoding='utf-8')
    handler.setFormatter(_WithLevel('%(asctime)s %(message)s'))
    for record in _EARLY.records:
        handler.handle(record)
    _EARLY.records.clear()
    LOGGER.removeHandler(_EARLY)
    LOGGER.addHandler(handler)


def progress_bar(items: Iterable[Item], *, total: int, label: str, unit: str = 'step', start: int = 0) -> tqdm:
    """Wrap `items` in a bar on standard error; silent where that is no terminal."""
    return tqdm(
        items,
        total=total,
        initial=start,
        desc=label,
        unit=unit,
        leave=False,
        dynamic_ncols=True,
        disable=LOGGER.disabled or not sys.stderr.isatty(),
    )
