"""How the paths of an annotation file are meant: settled once a file on a sample, applied to a path when it is used."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
import pyarrow as pa

from lib.errors import UserError
from lib.runtime.shared_memory import SharedArray, SharedFile, to_shared_memory

_SAMPLE = 16
_MAX_DEPTH = 12
_OF_WINDOWS = re.compile(r'(?:[A-Za-z]:[/\\]|\\\\)')


@dataclass(frozen=True)
class PathRule:
    """What is done to a path as annotated before it is joined to the root.

    Attributes:
        depth: folders taken off an absolute path, its root besides; None leaves every path as it is. Windows paths
            get this system's separators; relative paths stay.
    """

    depth: int | None = None

    def __call__(self, path: str) -> str:
        """Return the path that opens."""
        if self.depth is None:
            return path
        shorter = self._leading.sub('', path)
        return shorter.replace('\\', os.sep) if _OF_WINDOWS.match(path) else shorter

    @cached_property
    def _leading(self) -> re.Pattern:
        return re.compile(r'\A(?:[A-Za-z]:)?[/\\]+(?:[^/\\]+[/\\]+){' + str(self.depth) + '}')


class PathColumn(Sequence[str]):
    """The paths of a split: millions of them, none a Python string before it is asked for.

    Pickled to a worker process it is a place in shared memory: the annotations' cache file, or a copy made once.

    Attributes:
        arrow: (num_images,) Arrow strings, as annotated.
        rule: what is done to each before it is given out.
    """

    def __init__(self, arrow: pa.Array, rule: PathRule = PathRule(), file: SharedFile | None = None) -> None:
        """`arrow`: strings of either offset width, none of them null. `file`: where its buffers lie, if in one."""
        self.arrow = arrow
        self.rule = rule
        self._file = file

    def __len__(self) -> int:
        return len(self.arrow)

    def __getitem__(self, row: int) -> str:
        return self.rule(self.arrow[int(row)].as_py())

    def to_pylist(self) -> list[str]:
        """Return all of them; for small splits and tests."""
        return list(self)

    def read_by(self, rule: PathRule) -> 'PathColumn':
        """Return the same column under another rule."""
        column = PathColumn(self.arrow, rule, self._file)
        if '_parts' in self.__dict__:
            column.__dict__['_parts'] = self._parts
        return column

    @cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and text, both in memory that pickles as a place."""
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
        return _column, (len(self), *self._parts, self.rule)


def _column(length: int, offsets: np.ndarray, text: np.ndarray, rule: PathRule) -> PathColumn:
    column = PathColumn(strings(length, offsets, text), rule)
    column.__dict__['_parts'] = offsets, text
    return column


def strings(length: int, offsets: np.ndarray, text: np.ndarray) -> pa.Array:
    """Return Arrow strings over their offsets (`length` + 1, int32 or int64) and UTF-8 bytes, none copied."""
    kind = pa.string() if offsets.dtype.itemsize == 4 else pa.large_string()
    return pa.Array.from_buffers(kind, length, [None, pa.py_buffer(offsets), pa.py_buffer(text)])


def settle_paths(paths: PathColumn | pa.Array, root: str, source: str) -> tuple[PathRule, str]:
    """Return what makes the paths open when joined to `root`, and a sentence that says it ('' when nothing does).

    A relative path is under `root`. Absolute ones are taken as they are if they exist; else they come from another
    machine, and are tried under `root` with ever more of their leading folders taken off.

    Raises:
        UserError: not one of a sample of the images is there.
    """
    rows = np.unique(np.linspace(0, len(paths) - 1, _SAMPLE).astype(int))
    sample = [str(paths[int(row)]) for row in rows]
    absolute = [path for path in sample if _is_absolute(path)]
    if not absolute:
        if not any(os.path.exists(os.path.join(root, path)) for path in sample):
            raise UserError(_missing(sample[0], os.path.join(root, sample[0]), source))
        return PathRule(), ''
    if any(os.path.exists(path) for path in absolute):
        return PathRule(), f'{source}: absolute paths are taken as they are'
    for depth in range(_MAX_DEPTH):
        rule = PathRule(depth)
        tried = [rule(path) for path in absolute]
        if any(os.path.exists(os.path.join(root, path)) for path in tried):
            example = os.path.join(root, tried[0])
            note = f'{source}: absolute paths of another machine are read under {root}: {absolute[0]} -> {example}'
            return rule, note
    raise UserError(_missing(absolute[0], absolute[0], source))


def _is_absolute(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()


def _missing(written: str, tried: str, source: str) -> str:
    return (
        f'{source}: image {written!r} and others are not there (looked for {tried}); '
        'set DATASET.ROOT to the folder that the paths start from'
    )
