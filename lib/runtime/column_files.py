"""Files of a ColumnStore: the description of its columns, the mapped columns, and the journals of its writers."""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lib.runtime.checksums import checksum, sealed, unsealed
from lib.runtime.files import operation, remove, rename, sync_folder, temporary_folder, write_json
from lib.runtime.read_file import MAX_RECORD_BYTES, RefusedFileError, check_regular, open_regular, read_bytes
from lib.runtime.shared_memory import reserve

_DESCRIPTION, _JOURNAL, _FORMAT = 'about.json', 'rows{}.jsonl', 2
_MAX_JOURNAL_BYTES = 1 << 32
Columns = Mapping[str, tuple[type | str, tuple[int, ...]]]


class StoreDamaged(Exception):
    """A folder holds no usable store; the message is the reason, to follow the name of the folder."""


class Description(msgspec.Struct):
    """The content of about.json: `columns` are dtype and shape of one row, `about` is all that the values depend on."""

    num_rows: int
    columns: dict[str, tuple[str, list[int]]]
    about: dict[str, Any]
    format: int = _FORMAT

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole column."""
        return self.num_rows, *self.columns[name][1]

    def is_valid(self) -> bool:
        """Return whether the columns are names of files, numbers and booleans, and have sizes."""
        kinds, shapes = [dtype for dtype, _ in self.columns.values()], [shape for _, shape in self.columns.values()]
        return (
            self.format == _FORMAT
            and self.num_rows >= 0
            and all(Path(name).name == name for name in self.columns)
            and all(kind == 'bool' or re.fullmatch(r'u?int\d+|float\d+', kind) for kind in kinds)
            and all(size >= 1 for shape in shapes for size in shape)
        )


class Written(msgspec.Struct, array_like=True):
    """A line of a journal: rows start to stop - 1, the checksum of their values, and (row, message) of bad items."""

    start: int
    stop: int
    crc32: int
    errors: list[tuple[int, str]]


def create(folder: Path, description: Description) -> None:
    """Replace a folder by an empty store, whose blocks on the disk are allocated.

    Raises:
        OSError: no space for all rows, or the folder cannot be written.
    """
    with temporary_folder(folder) as fresh:
        try:
            for name, (dtype, _) in description.columns.items():
                path = fresh / f'{name}.npy'
                with operation('write', path), open(path, 'wb') as file:
                    file.write(header := _header(dtype, description.shape(name)))
                    file.flush()
                    reserve(file.fileno(), len(header) + _num_bytes(dtype, description.shape(name)))
            write_json(fresh / _DESCRIPTION, sealed(msgspec.to_builtins(description)))
        except OSError as error:
            error.filename = str(folder)
            raise
        remove(folder)
        rename(fresh, folder)
    sync_folder(folder.parent)


def describe(num_rows: int, columns: Columns, key: Mapping[str, Any]) -> Description:
    """Return the description of a store of `num_rows` rows."""
    names = {name: (np.dtype(dtype).name, list(shape)) for name, (dtype, shape) in columns.items()}
    return Description(num_rows, names, json.loads(json.dumps(key)))  # as the file gives the key back


def read_description(folder: Path) -> Description | None:
    """Return the description of the store in a folder; None: there is none, or it is damaged or of another version."""
    try:
        content = unsealed(json.loads(read_bytes(folder / _DESCRIPTION, max_bytes=MAX_RECORD_BYTES)))
        description = msgspec.convert(content, Description)
    except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None
    return description if description.is_valid() else None


def _header(dtype: type | str, shape: tuple[int, ...]) -> bytes:
    """Return the start of a .npy file."""
    header = io.BytesIO()
    content = {'descr': np.dtype(dtype).str, 'fortran_order': False, 'shape': shape}
    np.lib.format.write_array_header_1_0(header, content)
    return header.getvalue()


def _num_bytes(dtype: type | str, shape: tuple[int, ...]) -> int:
    return int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))


def map_columns(folder: Path, description: Description, mode: Any) -> dict[str, np.memmap]:
    """Map all columns. Raises: StoreDamaged, before NumPy could extend a short file; OSError."""
    columns: dict[str, np.memmap] = {}
    for name, (dtype, _) in description.columns.items():
        path, shape = folder / f'{name}.npy', description.shape(name)
        header = _header(dtype, shape)
        try:
            with open_regular(path) as file:
                if file.read(len(header)) != header:
                    raise StoreDamaged(f'{path.name} has another header')
                size = os.fstat(file.fileno()).st_size
        except (FileNotFoundError, IsADirectoryError, RefusedFileError):
            raise StoreDamaged(f'{path.name} is missing') from None
        expected = len(header) + _num_bytes(dtype, shape)
        if size != expected:
            raise StoreDamaged(f'{path.name} has {size:,} bytes, not {expected:,}')
        if mode == 'r+':
            _reserve_again(path, size)
        columns[name] = np.memmap(check_regular(path), np.dtype(dtype), mode, len(header), shape)
    return columns


def _reserve_again(path: Path, num_bytes: int) -> None:
    """Allocate the blocks of a file that was copied with holes."""
    with open(path, 'r+b') as file:
        try:
            reserve(file.fileno(), num_bytes)
        except OSError as error:
            error.filename = str(path)
            raise


def journal_path(folder: Path, writer: int) -> Path:
    """Return the path of a writer's journal."""
    return folder / _JOURNAL.format(writer)


def journals(folder: Path) -> list[Path]:
    """Return the journals of all writers."""
    return sorted(folder.glob(_JOURNAL.format('*')))


def read_journals(folder: Path) -> Iterator[Written]:
    """Yield the lines of all writers, without those of rows that were written again, and without damaged lines.

    A line truncated by a kill is one of them: its rows are not done.
    """
    last: dict[tuple[int, int], Written] = {}
    for path in journals(folder):
        for line in read_bytes(path, max_bytes=_MAX_JOURNAL_BYTES).splitlines():
            written = _read_line(line)
            if written is not None:
                last[written.start, written.stop] = written
    yield from last.values()


def line_of(written: Written) -> bytes:
    """Return a line of a journal: its checksum and its content."""
    content = msgspec.json.encode(written)
    return b'%08x %s\n' % (checksum(content), content)


def _read_line(line: bytes) -> Written | None:
    digits, _, content = line.partition(b' ')
    if digits != b'%08x' % checksum(content):
        return None
    try:
        written = msgspec.json.decode(content, type=Written)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return written if 0 <= written.start <= written.stop else None
