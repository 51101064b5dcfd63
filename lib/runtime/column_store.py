"""Crash-safe memory-mapped columns: one row per item, written in any order by several processes."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.runtime.files import sync_folder, write_json

_SECONDS_BETWEEN_FLUSHES = 5.0
_KEY_FILE, _DONE_FILE, _ERRORS_FILE = 'about.json', 'done.npy', 'notes{}.jsonl'


class ColumnStore:
    """A folder with a memory-mapped NAME.npy for each column, and a column that marks the finished rows.

    A row is marked only after its values are on the disk, so the marks are correct after a kill or a power failure.
    Several processes may write different rows at the same time, each through its own ColumnStore.

    Attributes:
        columns: name -> array (num_rows, ...), memory-mapped; valid in the rows that are done.
        done: (num_rows,) bool, memory-mapped.
    """

    def __init__(self, folder: Path, *, writer: int = 0) -> None:
        """Open a store created by `open_or_create`. `writer`: a different number for each writing process."""
        self.folder = folder
        shapes = json.loads((folder / _KEY_FILE).read_text(encoding='utf-8'))['columns']
        self.columns = {name: np.load(folder / f'{name}.npy', mmap_mode='r+') for name in shapes}
        self.done = np.load(folder / _DONE_FILE, mmap_mode='r+')
        self._errors_file = folder / _ERRORS_FILE.format(writer)
        self._pending: list[slice] = []
        self._errors: list[tuple[int, str]] = []
        self._flushed = time.monotonic()

    @property
    def is_complete(self) -> bool:
        """True if all rows are done."""
        return bool(self.done.all())

    def write(self, rows: slice, values: Mapping[str, np.ndarray], errors: Sequence[tuple[int, str]] = ()) -> None:
        """Write some rows of all columns. `errors`: (row, message) of items that could not be processed."""
        for name, column in self.columns.items():
            column[rows] = values[name]
        self._pending.append(rows)
        self._errors += errors
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def flush(self) -> None:
        """Flush all written rows to the disk, then mark them as done."""
        for column in self.columns.values():
            column.flush()
        if self._errors:
            with open(self._errors_file, 'a', encoding='utf-8') as file:
                file.write('\n' if file.tell() else '')  # the last line may be truncated
                file.writelines(json.dumps(error) + '\n' for error in self._errors)
        for rows in self._pending:
            self.done[rows] = True
        self.done.flush()
        self._pending, self._errors, self._flushed = [], [], time.monotonic()

    def errors(self) -> list[tuple[int, str]]:
        """Return (row, message) of all writers, sorted by row; one message for a row written again after a kill."""
        messages: dict[int, str] = {}
        for path in self.folder.glob(_ERRORS_FILE.format('*')):
            for line in path.read_text(encoding='utf-8').splitlines():
                try:
                    row, message = json.loads(line)
                except ValueError:  # truncated by a kill: its row is not done and will be written again
                    continue
                messages[row] = message
        return sorted(messages.items())


_ROWS_AT_ONCE = 10_000


def merge_stores(target: ColumnStore, parts: Sequence[ColumnStore]) -> None:
    """Copy the rows of complete stores with the same columns into a store, one after another, with their errors."""
    start = 0
    for part in parts:
        errors = [(start + row, message) for row, message in part.errors()]
        for first in range(0, len(part.done), _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, len(part.done))
            values = {name: column[first:last] for name, column in part.columns.items()}
            target.write(slice(start + first, start + last), values)
        target.write(slice(start, start), {name: column[:0] for name, column in part.columns.items()}, errors)
        start += len(part.done)
    target.flush()


def open_or_create(
    folder: Path, num_rows: int, columns: Mapping[str, tuple[type | str, tuple[int, ...]]], key: Mapping[str, Any]
) -> ColumnStore:
    """Open the store in a folder if its size, columns and key are the same, else replace it by an empty one.

    Args:
        columns: name -> dtype and shape of one row, such as {'features': (np.float32, (2048,))}.
        key: all that the values depend on, serializable as JSON.
    """
    names = {name: [np.dtype(dtype).name, list(shape)] for name, (dtype, shape) in columns.items()}
    description = json.loads(json.dumps({'num_rows': num_rows, 'columns': names, 'about': key}))
    if _read_description(folder) == description:
        return ColumnStore(folder)
    fresh = folder.with_name(f'.{folder.name}.tmp')
    for old in (fresh, folder):
        shutil.rmtree(old, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, (dtype, shape) in {**columns, 'done': (bool, ())}.items():
        np.lib.format.open_memmap(fresh / f'{name}.npy', 'w+', np.dtype(dtype), (num_rows, *shape))
    write_json(fresh / _KEY_FILE, description)
    fresh.rename(folder)
    sync_folder(folder.parent)
    return ColumnStore(folder)


def read_key(folder: Path) -> dict[str, Any] | None:
    """Return the key of the store in a folder, as JSON gives it back; None without a store."""
    description = _read_description(folder)
    return None if description is None else description['about']


def _read_description(folder: Path) -> Any:
    try:
        return json.loads((folder / _KEY_FILE).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
