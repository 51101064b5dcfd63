"""A converted data set as files: converted_{train,val,test}.json and classes.json."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath, PureWindowsPath

import msgspec
import numpy as np

from lib.errors import UserError
from lib.formats.converted import Converted, Split
from lib.formats.sources import SPLITS, is_utf8, short
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
    prefix = path_prefix(converted.root, folder)
    for name, split in converted.splits.items():
        check_split(name, split, converted.root)
    paths = {name: folder / f'converted_{name}.json' for name in SPLITS if name in converted.splits}
    for name in SPLITS:
        old = folder / f'converted_{name}.json'
        if name not in paths and old.exists():
            converted.warnings.append(f'{old} is from an earlier conversion, and the source has no such split now')
    with ExitStack() as stack:
        for name, path in paths.items():
            temporary = stack.enter_context(replacing(path))
            write_split(temporary, converted.splits[name], len(converted.names), prefix)
        temporary = stack.enter_context(replacing(folder / 'classes.json'))
        temporary.write_bytes(encode_classes(converted.names, converted.parents))
    return paths


def encode_classes(names: list[str], parents: list[list[str]] | None) -> bytes:
    """Return the content of classes.json."""
    classes = {'names': names} if parents is None else {'names': names, 'parents': parents}
    return msgspec.json.format(msgspec.json.encode(classes), indent=1) + b'\n'


def write_split(path: Path, split: Split, num_classes: int, prefix: str) -> None:
    """Write a file in pieces, one image a line."""
    labelled = split.labels is not None
    with open(path, 'wb') as file:
        file.write(b'{"annotations": [\n' if labelled else b'{"images": [\n')
        file.writelines(encode_entries(split, prefix))
        file.write(end_of_file(num_classes if labelled else None))


def end_of_file(num_classes: int | None) -> bytes:
    """Return what stands after the last entry; None: the split has no labels."""
    return b']}\n' if num_classes is None else b'],\n"num_classes": %d}\n' % num_classes


def encode_entries(split: Split, prefix: str) -> Iterator[bytes]:
    """Yield the entries in pieces, one a line, with commas between them."""
    encoder = msgspec.json.Encoder()
    labelled = split.labels is not None
    for start in range(0, len(split), _ROWS):
        rows = slice(start, start + _ROWS)
        paths = [join_path(prefix, path) for path in split.paths[rows]]
        if labelled:
            labels = split.labels[rows].tolist()
            entries = [{'category_id': label, 'fpath': path} for path, label in zip(paths, labels, strict=True)]
        else:
            entries = [{'image_id': path} for path in paths]
        end = b'\n' if start + _ROWS >= len(split) else b',\n'
        yield b',\n'.join(map(encoder.encode, entries)) + end


def check_split(name: str, split: Split, root: Path) -> None:
    """Raise UserError for an empty split, a path that is not Unicode, or no image where the paths lead."""
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


def path_prefix(root: Path, folder: Path) -> str:
    """Return what leads from `folder` to `root` ('' when they are one)."""
    # Links are resolved, since `..` climbs from where a link leads to, not from where it lies.
    root, folder = root.resolve(), folder.resolve()
    if root == folder:
        return ''
    try:
        return Path(os.path.relpath(root, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return root.as_posix()


def join_path(prefix: str, path: str) -> str:
    """Return a path of a source as it is written: `prefix` goes before a relative one."""
    if not prefix or PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute():
        return path
    return f'{prefix}/{path}'
