"""More images for a converted data set: added at the end of its files, which are copied, not converted again."""

import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.dataset.annotations import read_annotations, read_classes, read_test_images
from lib.errors import UserError
from lib.formats.converted import Converted, Split
from lib.formats.sources import SPLITS, read_json
from lib.formats.write import (
    check_split,
    encode_classes,
    encode_entries,
    end_of_file,
    join_path,
    path_prefix,
    write_split,
)
from lib.runtime.files import replacing

_END = re.compile(rb'\s*\](?:\s*,\s*"num_classes"\s*:\s*[0-9]+)?\s*\}\s*\Z')
_BEGIN = {True: re.compile(rb'\s*\{\s*"annotations"'), False: re.compile(rb'\s*\{\s*"images"')}
_END_BYTES = 4096


@dataclass(frozen=True)
class _Old:
    """A split of the set as it is."""

    path: Path
    paths: pa.Array
    labelled: bool


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
            temporary = stack.enter_context(replacing(paths[name]))
            if name in old:
                _extend(old[name], new, temporary, len(names))
            else:
                write_split(temporary, new, len(names), '')
            lines.append(f'{paths[name]}: {len(new):,} images added' + (f', {num_known:,} known' if num_known else ''))
        parents = old_parents and old_parents + _parents_of(converted, names[len(old_names) :])
        stack.enter_context(replacing(folder / 'classes.json')).write_bytes(encode_classes(names, parents or None))
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
        found[name] = _Old(path, split.paths.arrow, split.labelled)
    return found


def _new_images(
    name: str, converted: Converted, labels: np.ndarray, old: dict[str, _Old], prefix: str
) -> tuple[Split, int]:
    """Return the images of a split that the set does not have, as they are written, and how many it has."""
    split = converted.splits.get(name)
    if split is None:
        return Split([], None if name in old and not old[name].labelled else np.zeros(0, np.int32)), 0
    labelled = split.labels is not None
    if name in old and old[name].labelled != labelled:
        has = {True: 'has labels', False: 'has none'}
        raise UserError(f'{old[name].path} {has[old[name].labelled]}, but the {name} split of SOURCE {has[labelled]}')
    written = pa.array([join_path(prefix, path) for path in split.paths], pa.large_string())
    is_known = np.zeros(len(split), bool)
    # In any split: an image that SOURCE counts to another one must not come into both.
    for one in old.values():
        is_known |= pc.is_in(written, value_set=_common(one.paths, written)).to_numpy(zero_copy_only=False)
    chosen = np.flatnonzero(~is_known)
    paths = written.take(pa.array(chosen)).to_pylist()
    return Split(paths, labels[split.labels[chosen]] if labelled else None), int(is_known.sum())


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
        if end is None or not _BEGIN[old.labelled].match(source.read(_END_BYTES)):
            raise UserError(f'{old.path}: is not as tools/convert.py writes it; convert all images again')
        source.seek(0)
        shutil.copyfileobj(source, file)
        file.truncate(max(0, size - _END_BYTES) + end.start())
        file.seek(0, 2)
        file.write(b',\n' if len(new) else b'\n')
        file.writelines(encode_entries(new, ''))
        file.write(end_of_file(num_classes if old.labelled else None))
    read = read_annotations(target, keep=False) if old.labelled else read_test_images(target, num_classes)
    if len(read) != len(old.paths) + len(new):
        raise UserError(f'{old.path}: has other lists beside its images; convert all images again')


def _parents_of(converted: Converted, names: list[str]) -> list[list[str]]:
    if converted.parents is None:
        return [[] for _ in names]
    known = dict(zip(converted.names, converted.parents, strict=True))
    return [known[name] for name in names]
