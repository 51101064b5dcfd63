"""Crash-safe memory-mapped columns: one row per item, written in any order by several processes, with checksums.

A store is a folder with NAME.npy for each column, a description, and a journal per writer. A line of a journal is
written after the values of some rows are on the disk; it has their checksum and that of the line.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.runtime.checksums import checksum, in_threads
from lib.runtime.column_files import (
    Columns,
    StoreDamaged,
    Written,
    create,
    describe,
    journal_path,
    journals,
    line_of,
    map_columns,
    read_description,
    read_journals,
)
from lib.runtime.files import operation, sync_folder, write_bytes
from lib.runtime.log import LOGGER, progress_bar
from lib.runtime.text import count_of

_SECONDS_BETWEEN_FLUSHES = 5.0
_BLOCKS_AT_ONCE = 16  # by a thread


class ColumnStore:
    """Columns of values, and a mark for each row that is finished.

    A row is done only after its values are on the disk, so the marks are correct after a kill or a power failure.
    Several processes may write different rows at the same time, each through its own ColumnStore.

    Attributes:
        columns: name -> array (num_rows, ...), memory-mapped, read-only if all rows are done; valid in the rows that
            are done.
        done: (num_rows,) bool: rows whose values have the checksum with which they were written.
    """

    def __init__(self, folder: Path, *, writer: int = 0, done: np.ndarray | None = None) -> None:
        """Open a store created by `open_or_create`, and compare all values with their checksums.

        Args:
            writer: a different number for each writing process.
            done: `done` of the same store in a process that has verified it; then this one compares nothing.

        Raises:
            StoreDamaged: missing files, or files of another size.
            OSError: the folder cannot be read, or, unless all rows are done, not be written.
        """
        self.folder = folder
        description = read_description(folder)
        if description is None:
            raise StoreDamaged('its description is missing or damaged')
        self._journal = journal_path(folder, writer)
        self._pending: list[Written] = []
        self._flushed = time.monotonic()
        self.columns = map_columns(folder, description, 'r')
        self._valid: list[Written] = []  # of the journals
        self._num_damaged = 0  # rows
        self.done = self._verified(description.num_rows) if done is None else done.copy()
        if not self.done.all():
            self.columns = map_columns(folder, description, 'r+')

    @property
    def is_complete(self) -> bool:
        """True if all rows are done."""
        return bool(self.done.all())

    def write(self, rows: slice, values: Mapping[str, np.ndarray], errors: Sequence[tuple[int, str]] = ()) -> None:
        """Write some rows of all columns. `errors`: (row, message) of items that could not be processed."""
        for name, column in self.columns.items():
            column[rows] = values[name]
        self._pending.append(Written(rows.start, rows.stop, self._checksum(rows), [*errors]))
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def flush(self) -> None:
        """Flush all written rows to the disk, then mark them as done."""
        for column in self.columns.values():
            column.flush()
        if self._pending:
            self._append(b''.join(map(line_of, self._pending)))
        for written in self._pending:
            self.done[written.start : written.stop] = True
        self._pending, self._flushed = [], time.monotonic()

    def errors(self) -> list[tuple[int, str]]:
        """Return (row, message) of all writers, sorted by row; of a row written again, the last message."""
        messages: dict[int, str] = {}
        for written in read_journals(self.folder):
            messages.update(written.errors)
        return sorted(messages.items())

    def _checksum(self, rows: slice) -> int:
        return checksum(*(self.columns[name][rows] for name in sorted(self.columns)))

    def _append(self, lines: bytes) -> None:
        with operation('write', self._journal), open(self._journal, 'ab') as file:
            is_new = not file.tell()
            file.write(b'\n' + lines)  # the last line may be truncated
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self.folder)

    def _verified(self, num_rows: int) -> np.ndarray:
        """Return which rows have their checksum."""
        journal = [one for one in read_journals(self.folder) if one.stop <= num_rows]
        parts = [journal[start : start + _BLOCKS_AT_ONCE] for start in range(0, len(journal), _BLOCKS_AT_ONCE)]
        done, damaged = np.zeros(num_rows, bool), np.zeros(num_rows, bool)
        with progress_bar((), total=len(journal), label=f'{self.folder.name}: verify', unit='block') as bar:
            for part, results in zip(parts, in_threads(self._are_same, parts, len(parts)), strict=True):
                for written, is_same in zip(part, results, strict=True):
                    (done if is_same else damaged)[written.start : written.stop] = True
                    self._valid += [written] if is_same else []
                bar.update(len(part))
        self._num_damaged = int((damaged & ~done).sum())
        return done

    def _are_same(self, journal: list[Written]) -> list[bool]:
        return [self._checksum(slice(one.start, one.stop)) == one.crc32 for one in journal]

    def forget_damaged(self) -> None:
        """Remove the damaged rows from the journals, and log them. Only for the single process that has it open."""
        if not self._num_damaged:
            return
        LOGGER.info('%s: %s damaged, computing again', self.folder, count_of(self._num_damaged, 'row is', 'rows are'))
        first, *others = {journal_path(self.folder, 0): None} | dict.fromkeys(journals(self.folder))
        write_bytes(first, b''.join(map(line_of, self._valid)))
        for path in others:
            with operation('unlink', path):
                path.unlink()


_ROWS_AT_ONCE = 10_000


def merge_stores(target: ColumnStore, parts: Sequence[ColumnStore]) -> None:
    """Copy the rows of complete stores with the same columns into a store, one after another, with their errors."""
    start = 0
    for part in parts:
        errors = part.errors()
        for first in range(0, len(part.done), _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, len(part.done))
            values = {name: column[first:last] for name, column in part.columns.items()}
            some = [(start + row, message) for row, message in errors if first <= row < last]
            target.write(slice(start + first, start + last), values, some)
        start += len(part.done)
    target.flush()


def open_complete(folder: Path, num_rows: int, columns: Columns, key: Mapping[str, Any]) -> ColumnStore | None:
    """Open a store for reading, also in a folder that cannot be written, if it is complete; else return None.

    It is complete if it has this size, these columns and this key, and all rows have their checksums.
    """
    try:
        if read_description(folder) != describe(num_rows, columns, key):
            return None
        done = np.zeros(num_rows, bool)
        for written in read_journals(folder):
            done[written.start : written.stop] = True
        store = ColumnStore(folder) if done.all() else None
    except (StoreDamaged, OSError):
        return None
    return store if store is not None and store.is_complete else None


def open_or_create(folder: Path, num_rows: int, columns: Columns, key: Mapping[str, Any]) -> ColumnStore:
    """Open the store in a folder if its size, columns and key are the same, else replace it by an empty one.

    Rows that are damaged are not done; if files are missing or have another size, no row is. Either is logged.

    Args:
        columns: name -> dtype and shape of one row, such as {'features': (np.float32, (2048,))}.
        key: all that the values depend on, serializable as JSON.

    Raises:
        OSError: no space for all rows, or the folder cannot be written.
    """
    description = describe(num_rows, columns, key)
    if folder.exists():
        found = read_description(folder)
        reason = 'of other inputs or options' if found else 'with a damaged description, or of another version'
        try:
            if found == description:
                store = ColumnStore(folder)
                store.forget_damaged()
                return store
        except StoreDamaged as error:
            reason = str(error)
        LOGGER.info('%s: %s, computing again', folder, reason)
    create(folder, description)
    return ColumnStore(folder)


def read_key(folder: Path) -> dict[str, Any] | None:
    """Return the key of the store in a folder, as JSON gives it back; None without a store, or with a damaged key."""
    description = read_description(folder)
    return None if description is None else description.about
