"""The logger of all commands (terminal and log.txt) and progress bars."""

import logging
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from lib.errors import printable
from lib.runtime.mirror import with_urls
from lib.runtime.storage import materialize

Item = TypeVar('Item')
LOGGER = logging.getLogger('recognizer')


class _Console(logging.Handler):
    """Writes through tqdm, so that log lines do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        tqdm.write(self.format(record), file=stream)
        stream.flush()


class _File(logging.FileHandler):
    """Raises errors such as a full disk, where logging would only print a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


class _Buffer(logging.Handler):
    """Stores the records logged before log.txt exists."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _WithLevel(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = with_urls(printable(super().format(record)))
        return f'warning: {text}' if record.levelno >= logging.WARNING else text


_BUFFER = _Buffer()


def start_console(*, enabled: bool = True) -> None:
    """Log to the terminal, warnings to standard error. `enabled`: False on all ranks but one."""
    if not enabled:
        LOGGER.disabled = True
    elif not LOGGER.handlers:
        console = _Console()
        console.setFormatter(_WithLevel('%(message)s'))
        LOGGER.addHandler(console)
        LOGGER.addHandler(_BUFFER)
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False
        # Its notes on a home folder that cannot be written are of no use; charts are the same without it.
        logging.getLogger('matplotlib').setLevel(logging.ERROR)


def log_to(path: Path) -> None:
    """Append all log lines, including those of this process so far, to the file at `path`, each with the time."""
    with suppress(FileNotFoundError):
        materialize(path)  # so that lines of earlier commands in a bucket stay
    handler = _File(path, encoding='utf-8', errors='backslashreplace')
    handler.setFormatter(_WithLevel('%(asctime)s %(message)s'))
    for record in _BUFFER.records:
        handler.handle(record)
    _BUFFER.records.clear()
    LOGGER.removeHandler(_BUFFER)
    LOGGER.addHandler(handler)


def print_lines(lines: Iterable[str]) -> None:
    """Print each line of a result on standard output at once, with control characters of names escaped.

    Ranks whose log is disabled compute the lines, maybe together with the others, and print none.
    """
    for line in lines:
        if not LOGGER.disabled:
            print(printable(with_urls(line)), flush=True)


def duration_text(seconds: float) -> str:
    """Return a duration in its largest fitting unit: 45 s, 12 min, 3.4 h, 2.5 days."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    if seconds < 5400:
        return f'{seconds / 60:.0f} min'
    return f'{seconds / 3600:.1f} h' if seconds < 2 * 86400 else f'{seconds / 86400:.1f} days'


def progress_bar(items: Iterable[Item], *, total: int, label: str, unit: str = 'step', start: int = 0) -> tqdm:
    """Wrap `items` in a progress bar on standard error; without a bar if that is not a terminal."""
    return tqdm(
        items,
        total=total,
        initial=start,
        desc=printable(label),
        unit=unit,
        leave=False,
        dynamic_ncols=True,
        disable=LOGGER.disabled or not sys.stderr.isatty(),
    )
