"""Paths of an annotation file: one rule per file, chosen on a sample, maps annotated paths to files below a root."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath, PureWindowsPath
from typing import overload

import numpy as np
import pyarrow as pa

from lib.errors import UserError
from lib.runtime.shared_memory import SharedArray, SharedFile, to_shared_memory

_SAMPLE = 16
_MAX_DEPTH = 12
_WINDOWS_ROOT = re.compile(r'(?:[A-Za-z]:[/\\]|\\\\)')


@dataclass(frozen=True)
class PathRule:
    """A mapping of annotated paths to paths that are joined to the root.

    Attributes:
        depth: leading folders to remove from an absolute path in addition to its root; None: paths are unchanged.
            Windows paths get this system's separators; relative paths are unchanged.
    """

    depth: int | None = None

    def __call__(self, path: str) -> str:
        """Return the path to open."""
        if self.depth is None:
            return path
        relative = self._leading.sub('', path)
        return relative.replace('\\', os.sep) if _WINDOWS_ROOT.match(path) else relative

    @cached_property
    def _leading(self) -> re.Pattern:
        return re.compile(r'\A(?:[A-Za-z]:)?[/\\]+(?:[^/\\]+[/\\]+){' + str(self.depth) + '}')


class PathColumn(Sequence[str]):
    """The paths of a split in an Arrow column; each becomes a Python string on access only.

    Pickled to a worker process, it refers to shared memory: the annotations' cache file, or a copy made once.

    Attributes:
        arrow: (num_images,) Arrow strings, as annotated.
        rule: applied to each path on access.
    """

    def __init__(self, arrow: pa.Array, rule: PathRule = PathRule(), file: SharedFile | None = None) -> None:
        """Set the strings: of either offset width, none null. `file` holds their buffers, if they are in a file."""
        self.arrow = arrow
        self.rule = rule
        self._file = file

    def __len__(self) -> int:
        return len(self.arrow)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self.rule(path) for path in self.arrow[row].to_pylist()]
        return self.rule(self.arrow[int(row)].as_py())

    def to_pylist(self) -> list[str]:
        """Return all paths; for small splits and tests."""
        return list(self)

    def with_rule(self, rule: PathRule) -> 'PathColumn':
        """Return the same column under another rule."""
        column = PathColumn(self.arrow, rule, self._file)
        if '_shared_buffers' in self.__dict__:
            column.__dict__['_shared_buffers'] = self._shared_buffers
        return column

    @cached_property
    def _shared_buffers(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and text in shared memory, of which pickle sends only the address."""
        _, offsets, text = self.arrow.buffers()
        wide = 'i8' if pa.types.is_large_string(self.arrow.type) else 'i4'
        first = self.arrow.offset * np.dtype(wide).itemsize
        if self._file is None:
            all_offsets = np.frombuffer(offsets, wide)[self.arrow.offset :][: len(self) + 1]
            return to_shared_memory(all_offsets), to_shared_memory(np.frombuffer(text, 'u1'))
        start = pa.py_buffer(self._file.memory).address
        return (
            SharedArray.at(self._file, wide, len(self) + 1, offsets.address - start + first),
            SharedArray.at(self._file, 'u1', text.size, text.address - start),
        )

    def __reduce__(self) -> tuple:
        return _column, (len(self), *self._shared_buffers, self.rule)


def _column(length: int, offsets: np.ndarray, text: np.ndarray, rule: PathRule) -> PathColumn:
    column = PathColumn(strings(length, offsets, text), rule)
    column.__dict__['_shared_buffers'] = offsets, text
    return column


def strings(length: int, offsets: np.ndarray, text: np.ndarray) -> pa.Array:
    """Return Arrow strings over offsets (`length` + 1, int32 or int64) and UTF-8 bytes, without a copy."""
    kind = pa.string() if offsets.dtype.itemsize == 4 else pa.large_string()
    return pa.Array.from_buffers(kind, length, [None, pa.py_buffer(offsets), pa.py_buffer(text)])


def choose_path_rule(paths: PathColumn | pa.Array, root: str, source: str) -> tuple[PathRule, str]:
    """Return the rule under which the paths exist when joined to `root`, and a log line ('' for relative paths).

    A relative path is below `root`. Absolute paths are used unchanged if they exist. Otherwise they come from another
    machine, and are searched below `root` with more and more of their leading folders removed.

    Raises:
        UserError: none of a sample of the images exists.
    """
    rows = np.unique(np.linspace(0, len(paths) - 1, _SAMPLE).astype(int))
    sample = [str(paths[int(row)]) for row in rows]
    absolute = [path for path in sample if _is_absolute(path)]
    if not absolute:
        if not any(os.path.exists(os.path.join(root, path)) for path in sample):
            raise UserError(_missing(sample[0], os.path.join(root, sample[0]), source))
        return PathRule(), ''
    if any(os.path.exists(path) for path in absolute):
        return PathRule(), f'{source}: absolute paths are used unchanged'
    for depth in range(_MAX_DEPTH):
        rule = PathRule(depth)
        tried = [rule(path) for path in absolute]
        if any(os.path.exists(os.path.join(root, path)) for path in tried):
            example = os.path.join(root, tried[0])
            line = f'{source}: absolute paths of another machine are read under {root}: {absolute[0]} -> {example}'
            return rule, line
    raise UserError(_missing(absolute[0], absolute[0], source))


def _is_absolute(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()


def _missing(written: str, tried: str, source: str) -> str:
    return f'{source}: image {written!r} and others do not exist (searched for {tried})'
