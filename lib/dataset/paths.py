"""How the paths of an annotation file are meant: settled once a file, on a sample of it."""

import os
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.errors import UserError

_SAMPLE = 16
_MAX_DEPTH = 12


def settle_paths(paths: pa.LargeStringArray, root: str, source: str) -> tuple[pa.LargeStringArray, str]:
    """Return paths that open when joined to `root`, and a sentence that says how they were read ('' when plainly).

    A relative path is under `root`. Absolute ones are taken as they are if they exist; else they come from another
    machine, and are tried under `root` with ever more of their leading folders taken off.

    Raises:
        UserError: not one of a sample of the images is there.
    """
    rows = np.unique(np.linspace(0, len(paths) - 1, _SAMPLE).astype(int))
    sample = [paths[int(row)].as_py() for row in rows]
    absolute = [path for path in sample if _is_absolute(path)]
    if not absolute:
        if not any(os.path.exists(os.path.join(root, path)) for path in sample):
            raise UserError(_missing(sample[0], os.path.join(root, sample[0]), source))
        return paths, ''
    if any(os.path.exists(path) for path in absolute):
        return paths, f'{source}: absolute paths are taken as they are'
    for depth in range(_MAX_DEPTH):
        tried = _without_folders(pa.array(absolute, pa.large_string()), depth).to_pylist()
        if any(os.path.exists(os.path.join(root, path)) for path in tried):
            example = os.path.join(root, tried[0])
            note = f'{source}: absolute paths of another machine are read under {root}: {absolute[0]} -> {example}'
            return _without_folders(paths, depth), note
    raise UserError(_missing(absolute[0], absolute[0], source))


def _is_absolute(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()


def _pattern(depth: int) -> str:
    """Return the expression that takes the root and `depth` folders off an absolute path, and leaves others alone."""
    return r'^(?:[A-Za-z]:)?[/\\]+(?:[^/\\]+[/\\]+){' + str(depth) + '}'


def _without_folders(paths: pa.LargeStringArray, depth: int) -> pa.LargeStringArray:
    """Return the paths with `depth` folders taken off absolute ones; those of Windows get this system's separators."""
    windows = pc.match_substring_regex(paths, r'^(?:[A-Za-z]:[/\\]|\\\\)')
    shorter = pc.replace_substring_regex(paths, pattern=_pattern(depth), replacement='')
    return pc.if_else(windows, pc.replace_substring(shorter, '\\', os.sep), shorter)


def _missing(written: str, tried: str, source: str) -> str:
    return (
        f'{source}: image {written!r} and others are not there (looked for {tried}); '
        'set DATASET.ROOT to the folder that the paths start from'
    )
