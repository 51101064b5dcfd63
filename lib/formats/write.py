"""A converted data set as files: converted_{train,val,test}.json and classes.json.

More images for a converted data set: added at the end of its files, which are copied, not converted again.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.dataset.annotations import read_annotations, read_classes, read_test_images
from lib.errors import UserError
from lib.formats.converted import Converted, Split
from lib.formats.sources import SPLITS, is_utf8, read_json, short
from lib.runtime.files import replace_atomically

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
            temporary = stack.enter_context(replace_atomically(path))
            write_split(temporary, converted.splits[name], len(converted.names), prefix)
        temporary = stack.enter_context(replace_atomically(folder / 'classes.json'))
        temporary.write_bytes(encode_classes(converted.names, converted.parents))
    return paths


def encode_classes(names: list[str], parents: list[list[str]] | None) -> bytes:
    """Return the content of classes.json."""
    classes = {'names': names} if parents is None else {'names': names, 'parents': parents}
    return msgspec.json.format(msgspec.json.encode(classes), indent=1) + b'\n'


def write_split(path: Path, split: Split, num_classes: int, prefix: str) -> None:
    """Write a file in pieces, one image a line."""
    labeled = split.labels is not None
    with open(path, 'wb') as file:
        file.write(b'{"annotations": [\n' if labeled else b'{"images": [\n')
        file.writelines(encode_entries(split, prefix))
        file.write(end_of_file(num_classes if labeled else None))


def end_of_file(num_classes: int | None) -> bytes:
    """Return what stands after the last entry; None: the split has no labels."""
    return b']}\n' if num_classes is None else b'],\n"num_classes": %d}\n' % num_classes


def encode_entries(split: Split, prefix: str) -> Iterator[bytes]:
    """Yield the entries in pieces, one a line, with commas between them."""
    encoder = msgspec.json.Encoder()
    labeled = split.labels is not None
    for start in range(0, len(split), _ROWS):
        rows = slice(start, start + _ROWS)
        paths = [join_path(prefix, path) for path in split.paths[rows]]
        if labeled:
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


_END = re.compile(rb'\s*\](?:\s*,\s*"num_classes"\s*:\s*[0-9]+)?\s*\}\s*\Z')
_BEGIN = {True: re.compile(rb'\s*\{\s*"annotations"'), False: re.compile(rb'\s*\{\s*"images"')}
_END_BYTES = 4096


@dataclass(frozen=True)
class _Old:
    """A split of the set as it is."""

    path: Path
    paths: pa.Array
    labeled: bool


class _Names(msgspec.Struct):
    names: list[str]


def append_converted(converted: Converted, folder: Path) -> list[str]:
    """Add the images of `converted` to the converted set in `folder`; return lines that say what was done.

    Classes are matched by name; unknown ones get labels after those there are, so that no label changes. Images that
    one of the splits has already are left out. Either all files are replaced or none.

    Raises:
        UserError: there is no converted set, its files are not as tools/convert.py writes them, or as write_converted.
    """
    old_names, old_parents = _read_classes(folder / 'classes.json')
    known = set(old_names)
    names = old_names + [name for name in converted.names if name not in known]
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[name] for name in converted.names], np.int32)
    for name, split in converted.splits.items():
        check_split(name, split, converted.root)
    old = _read_splits(folder, len(old_names))
    prefix = path_prefix(converted.root, folder)
    lines, paths = [], {name: folder / f'converted_{name}.json' for name in SPLITS}
    with ExitStack() as stack:
        for name in [name for name in SPLITS if name in old or name in converted.splits]:
            new, num_known = _new_images(name, converted, labels, old, prefix)
            temporary = stack.enter_context(replace_atomically(paths[name]))
            if name in old:
                _extend(old[name], new, temporary, len(names))
            else:
                write_split(temporary, new, len(names), '')
            lines.append(f'{paths[name]}: {len(new):,} images added' + (f', {num_known:,} known' if num_known else ''))
        parents = old_parents and old_parents + _parents_of(converted, names[len(old_names) :])
        stack.enter_context(replace_atomically(folder / 'classes.json')).write_bytes(
            encode_classes(names, parents or None)
        )
    lines.append(f'{folder / "classes.json"}: {len(names) - len(old_names):,} classes added, {len(names):,} in all')
    return lines


def _read_classes(path: Path) -> tuple[list[str], list[list[str]]]:
    if not path.is_file():
        raise UserError(f'{path}: no such file; --append adds to a folder that was converted before')
    names = read_json(path, _Names).names
    classes = read_classes(path, len(names))
    return classes.names, classes.parents


def _read_splits(folder: Path, num_classes: int) -> dict[str, _Old]:
    found = {}
    for name in SPLITS:
        path = folder / f'converted_{name}.json'
        if not path.exists():
            continue
        if name == 'test':
            split = read_test_images(path, num_classes)
        else:
            split = read_annotations(path)
            if split.num_classes != num_classes:
                raise UserError(f'{path}: num_classes is {split.num_classes}, but classes.json has {num_classes} names')
        found[name] = _Old(path, split.paths.arrow, split.labeled)
    return found


def _new_images(
    name: str, converted: Converted, labels: np.ndarray, old: dict[str, _Old], prefix: str
) -> tuple[Split, int]:
    """Return the images of a split that the set does not have, as they are written, and how many it has."""
    split = converted.splits.get(name)
    if split is None:
        return Split([], None if name in old and not old[name].labeled else np.zeros(0, np.int32)), 0
    labeled = split.labels is not None
    if name in old and old[name].labeled != labeled:
        has = {True: 'has labels', False: 'has none'}
        raise UserError(f'{old[name].path} {has[old[name].labeled]}, but the {name} split of SOURCE {has[labeled]}')
    written = pa.array([join_path(prefix, path) for path in split.paths], pa.large_string())
    is_known = np.zeros(len(split), bool)
    # In any split: an image that SOURCE counts to another one must not come into both.
    for one in old.values():
        is_known |= pc.is_in(written, value_set=_common(one.paths, written)).to_numpy(zero_copy_only=False)
    chosen = np.flatnonzero(~is_known)
    paths = written.take(pa.array(chosen)).to_pylist()
    return Split(paths, labels[split.labels[chosen]] if labeled else None), int(is_known.sum())


def _common(many: pa.Array, few: pa.Array) -> pa.Array:
    many = many.cast(few.type)
    return many.filter(pc.is_in(many, value_set=few))


def _extend(old: _Old, new: Split, target: Path, num_classes: int) -> None:
    """Write the old file's entries, byte by byte, and the new ones behind them."""
    size = old.path.stat().st_size
    with open(old.path, 'rb') as source, open(target, 'wb') as file:
        source.seek(max(0, size - _END_BYTES))
        end = _END.search(source.read())
        source.seek(0)
        if end is None or not _BEGIN[old.labeled].match(source.read(_END_BYTES)):
            raise UserError(f'{old.path}: is not as tools/convert.py writes it; convert all images again')
        source.seek(0)
        shutil.copyfileobj(source, file)
        file.truncate(max(0, size - _END_BYTES) + end.start())
        file.seek(0, 2)
        file.write(b',\n' if len(new) else b'\n')
        file.writelines(encode_entries(new, ''))
        file.write(end_of_file(num_classes if old.labeled else None))
    read = read_annotations(target, use_cache=False) if old.labeled else read_test_images(target, num_classes)
    if len(read) != len(old.paths) + len(new):
        raise UserError(f'{old.path}: has other lists beside its images; convert all images again')


def _parents_of(converted: Converted, names: list[str]) -> list[list[str]]:
    if converted.parents is None:
        return [[] for _ in names]
    known = dict(zip(converted.names, converted.parents, strict=True))
    return [known[name] for name in names]
