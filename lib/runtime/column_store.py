"""Columns of numbers on the disk, a row a thing, filled in any order and by several processes, that outlive a kill."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.runtime.files import sync_folder, write_json

_SECONDS_BETWEEN_FLUSHES = 5.0
_ABOUT, _DONE, _NOTES = 'about.json', 'done.npy', 'notes'


class ColumnStore:
    """A folder with a memory-mapped NAME.npy for each column, and which rows are there.

    A row counts as there only once its numbers are on the disk: what a kill or a power cut leaves is true. Processes
    may write different rows of one store at the same time, each through a RowStore of its own.

    Attributes:
        columns: name -> array (num_rows, ...), memory-mapped; to be read where rows are done.
        done: (num_rows,) bool, memory-mapped.
    """

    def __init__(self, folder: Path, *, writer: int = 0) -> None:
        """Open a store that `made_store` made. `writer`: a number of this process among those that write."""
        self.folder = folder
        shapes = json.loads((folder / _ABOUT).read_text(encoding='utf-8'))['columns']
        self.columns = {name: np.load(folder / f'{name}.npy', mmap_mode='r+') for name in shapes}
        self.done = np.load(folder / _DONE, mmap_mode='r+')
        self._notes_file = folder / f'{_NOTES}{writer}.jsonl'
        self._pending: list[slice] = []
        self._notes: list[tuple[int, str]] = []
        self._flushed = time.monotonic()

    @property
    def is_complete(self) -> bool:
        """Whether all rows are there."""
        return bool(self.done.all())

    def write(self, rows: slice, values: Mapping[str, np.ndarray], notes: list[tuple[int, str]] = ()) -> None:
        """Fill some rows of all columns; `notes`: (row, text) of those that there is something to say about."""
        for name, column in self.columns.items():
            column[rows] = values[name]
        self._pending.append(rows)
        self._notes += notes
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def flush(self) -> None:
        """Put what was written on the disk; only then its rows are done."""
        for column in self.columns.values():
            column.flush()
        if self._notes:
            with open(self._notes_file, 'a', encoding='utf-8') as file:
                file.write('\n' if file.tell() else '')  # the last line may have been cut short
                file.writelines(json.dumps(note) + '\n' for note in self._notes)
        for rows in self._pending:
            self.done[rows] = True
        self.done.flush()
        self._pending, self._notes, self._flushed = [], [], time.monotonic()

    def notes(self) -> list[tuple[int, str]]:
        """Return (row, text) of all writers, by row; one of a row that was filled twice, since a kill came between."""
        found: dict[int, str] = {}
        for path in self.folder.glob(f'{_NOTES}*.jsonl'):
            for line in path.read_text(encoding='utf-8').splitlines():
                try:
                    row, text = json.loads(line)
                except ValueError:  # cut short by a kill: its row is not done, and comes again
                    continue
                found[row] = text
        return sorted(found.items())


def open_or_create(
    folder: Path, num_rows: int, columns: Mapping[str, tuple[type | str, tuple[int, ...]]], about: Mapping[str, Any]
) -> ColumnStore:
    """Open the store in a folder if it is of the same thing, else make an empty one in its place.

    Args:
        columns: name -> type and shape of a row, such as {'features': (np.float32, (2048,))}.
        about: what the numbers depend on, of what JSON can hold; another `about` is another thing.
    """
    names = {name: [np.dtype(dtype).name, list(shape)] for name, (dtype, shape) in columns.items()}
    wanted = json.loads(json.dumps({'num_rows': num_rows, 'columns': names, 'about': about}))
    if _about(folder) == wanted:
        return ColumnStore(folder)
    fresh = folder.with_name(f'.{folder.name}.tmp')
    for old in (fresh, folder):
        shutil.rmtree(old, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, (dtype, shape) in {**columns, 'done': (bool, ())}.items():
        np.lib.format.open_memmap(fresh / f'{name}.npy', 'w+', np.dtype(dtype), (num_rows, *shape))
    write_json(fresh / _ABOUT, wanted)
    fresh.rename(folder)
    sync_folder(folder.parent)
    return ColumnStore(folder)


def _about(folder: Path) -> Any:
    try:
        return json.loads((folder / _ABOUT).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
