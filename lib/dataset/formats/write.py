"""A converted data set as files: converted_{train,val,test}.json and classes.json."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath, PureWindowsPath

import msgspec
import numpy as np

from lib.dataset.formats.converted import Converted, Split
from lib.dataset.formats.sources import SPLITS, is_utf8, short
from lib.errors import UserError
from lib.runtime.files import replacing

_ROWS = 10_000  # encoded at a time, so that memory stays flat
_SAMPLE = 200


def write_converted(converted: Converted, folder: Path) -> dict[str, Path]:
    """Write the splits there are, and classes.json, into `folder`; return split -> path.

    Paths are written relative to `folder`, so that it can serve as DATASET.ROOT. Either all files are
    replaced or none.

    Raises:
        UserError: a split is empty, a path is not Unicode, or no image of a split is where its path points.
    """
    prefix = _prefix(converted.root, folder)
    for name, split in converted.splits.items():
        _check_split(name, split, converted.root)
    paths = {name: folder / f'converted_{name}.json' for name in SPLITS if name in converted.splits}
    for name in SPLITS:
        old = folder / f'converted_{name}.json'
        if name not in paths and old.exists():
            converted.warnings.append(f'{old} is from an earlier conversion, and the source has no such split now')
    with ExitStack() as stack:
        for name, path in paths.items():
            temporary = stack.enter_context(replacing(path))
            with open(temporary, 'wb') as file:
                file.writelines(_encode(converted.splits[name], len(converted.names), prefix))
        classes = {'names': converted.names}
        if converted.parents is not None:
            classes['parents'] = converted.parents
        temporary = stack.enter_context(replacing(folder / 'classes.json'))
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(classes), indent=1) + b'\n')
    return paths


def _encode(split: Split, num_classes: int, prefix: str) -> Iterator[bytes]:
    """Yield the file in pieces, one image a line."""
    encoder = msgspec.json.Encoder()
    labelled = split.labels is not None
    yield b'{"annotations": [\n' if labelled else b'{"images": [\n'
    for start in range(0, len(split), _ROWS):
        rows = slice(start, start + _ROWS)
        paths = [_join(prefix, path) for path in split.paths[rows]]
        if labelled:
            labels = split.labels[rows].tolist()
            entries = [{'category_id': label, 'fpath': path} for path, label in zip(paths, labels, strict=True)]
        else:
            entries = [{'image_id': path} for path in paths]
        end = b'\n' if start + _ROWS >= len(split) else b',\n'
        yield b',\n'.join(map(encoder.encode, entries)) + end
    yield b'],\n"num_classes": %d}\n' % num_classes if labelled else b']}\n'


def _check_split(name: str, split: Split, root: Path) -> None:
    if not len(split):
        raise UserError(f'the {name} split lists no images')
    for path in split.paths:
        if not path.isascii() and not is_utf8(path):
            raise UserError(f'{name}: the file name {short(path)} is not Unicode (UTF-8); rename the file')
    rows = np.unique(np.linspace(0, len(split) - 1, _SAMPLE).astype(int))
    sample = [root / split.paths[row] for row in rows]
    if not any(path.exists() for path in sample):
        raise UserError(
            f'{name}: image {split.paths[0]!r} and others are not there (looked for {sample[0]}); '
            'unpack the images first, or name the folder that the paths start from with --image_root'
        )


def _prefix(root: Path, folder: Path) -> str:
    """Return what leads from `folder` to `root` ('' when they are one)."""
    # Links are resolved, since `..` climbs from where a link leads to, not from where it lies.
    root, folder = root.resolve(), folder.resolve()
    if root == folder:
        return ''
    try:
        return Path(os.path.relpath(root, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return root.as_posix()


def _join(prefix: str, path: str) -> str:
    if not prefix or PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute():
        return path
    return f'{prefix}/{path}'
