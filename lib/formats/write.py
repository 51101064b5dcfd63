"""Write a converted data set: converted_{train,val,test}.json and classes.json, or append to existing ones.

Appended entries follow the existing ones, which are copied byte by byte.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.dataset.annotations import read_annotations, read_classes, read_test_images
from lib.dataset.paths import comparable_paths, refuse_urls, spelled_on_disk
from lib.errors import UserError, is_unicode, shown, text_fault, unquoted
from lib.formats.converted import ConvertedDataset, ConvertedSplit
from lib.formats.sources import SPLITS
from lib.runtime.files import file_exists, replace_atomically, replace_together, wait_for_lock, write_bytes
from lib.runtime.json_file import read_json
from lib.runtime.mirror import is_mirrored, url_of
from lib.runtime.read_file import MAX_JSON_BYTES
from lib.runtime.text import count_of, name_warnings, names_digest

_ROWS_PER_CHUNK = 10_000  # encoded at a time, so that memory does not grow
_NUM_CHECKED = 200  # paths per split


def write_converted(converted: ConvertedDataset, folder: Path) -> dict[str, Path]:
    """Write the splits and classes.json into `folder`; return split -> path.

    Image paths are relative to `folder`, so that it can be DATASET.ROOT. Either all files are replaced or none.

    Raises:
        UserError: a split is empty, a path is a URL or not Unicode, or no image of a split exists.
    """
    prefix, digest = path_prefix(converted.root, folder), names_digest(converted.names)
    for name, split in converted.splits.items():
        check_split(name, split, converted.root)
    paths = {name: folder / f'converted_{name}.json' for name in SPLITS if name in converted.splits}
    for name in SPLITS:
        old = folder / f'converted_{name}.json'
        if name not in paths and old.exists():
            converted.warnings.append(f'{old} is from an earlier conversion; the source has no such split')
    with replace_together(folder):
        for name, path in paths.items():
            with replace_atomically(path) as temporary:
                write_split(temporary, converted.splits[name], len(converted.names), digest, prefix)
        write_bytes(folder / 'classes.json', encode_classes(converted.names, converted.parents))
    return paths


def encode_classes(names: list[str], parents: list[list[str]] | None) -> bytes:
    """Return the content of classes.json."""
    classes = {'names': names} if parents is None else {'names': names, 'parents': parents}
    return msgspec.json.format(msgspec.json.encode(classes), indent=1) + b'\n'


def write_split(path: Path, split: ConvertedSplit, num_classes: int, digest: str, prefix: str) -> None:
    """Write a file in chunks, with one image per line. `digest`: of the class names."""
    labeled = split.labels is not None
    with open(path, 'wb') as file:
        file.write(b'{"annotations": [\n' if labeled else b'{"images": [\n')
        file.writelines(encode_entries(split, prefix))
        file.write(end_of_file(num_classes if labeled else None, digest))


def end_of_file(num_classes: int | None, digest: str) -> bytes:
    """Return the text after the last entry; `num_classes` is None for a split without labels."""
    number = b'' if num_classes is None else b'"num_classes": %d,\n' % num_classes
    return b'],\n%b"classes_digest": "%b"}\n' % (number, digest.encode())


def encode_entries(split: ConvertedSplit, prefix: str) -> Iterator[bytes]:
    """Yield the entries in chunks, with one entry per line and commas between them."""
    encoder = msgspec.json.Encoder()
    for start in range(0, len(split), _ROWS_PER_CHUNK):
        rows = slice(start, start + _ROWS_PER_CHUNK)
        paths = [join_path(prefix, path) for path in split.paths[rows]]
        entries: list[dict[str, Any]]
        if split.labels is None:
            entries = [{'image_id': path} for path in paths]
        else:
            labels = split.labels[rows].tolist()
            entries = [{'category_id': label, 'fpath': path} for path, label in zip(paths, labels, strict=True)]
        end = b'\n' if start + _ROWS_PER_CHUNK >= len(split) else b',\n'
        yield b',\n'.join(map(encoder.encode, entries)) + end


def check_split(name: str, split: ConvertedSplit, root: Path) -> None:
    """Raise UserError if the split is empty, a path is a URL or not Unicode, or none of the checked images exists."""
    if not len(split):
        raise UserError(f'the {name} split lists no images')
    undecodable = [path for path in split.paths if not is_unicode(path)]
    if undecodable:
        raise UserError(
            f'{name}: the paths of {count_of(len(undecodable), "file is", "files are")} not UTF-8, as JSON must be: '
            f'{unquoted(undecodable[0])}; rename them '
            '(convmv -f latin1 -t utf8 -r --notest FOLDER renames all)'
        )
    refuse_urls(split.paths, str(root), name)
    rows = np.unique(np.linspace(0, len(split) - 1, _NUM_CHECKED).astype(int))
    sample = [root / split.paths[row] for row in rows]
    if not any(spelled_on_disk(str(path)) for path in sample):
        expected = Path(root, unquoted(split.paths[0]))
        raise UserError(
            f'{name}: image {shown(split.paths[0])} and others do not exist (expected: {expected}); '
            'unpack the images first, or name the folder that the paths are relative to with --image_root'
        )


def path_prefix(root: Path, folder: Path) -> str:
    """Return the relative path from `folder` to `root`; '' if they are the same. Raises: UserError."""
    if is_mirrored(root) and url_of(root).split('/')[:3] != url_of(folder).split('/')[:3]:
        raise UserError(f'OUT is {url_of(folder)}, but must be in the bucket of the images, such as {url_of(root)}')
    # Links are resolved, since `..` is the parent of the target of a link.
    root, folder = root.resolve(), folder.resolve()
    if root == folder:
        return ''
    try:
        prefix = Path(os.path.relpath(root, folder)).as_posix()
    except ValueError:  # another drive of Windows
        prefix = root.as_posix()
    if fault := text_fault(prefix):
        raise UserError(f'the folder of the images is {fault}')
    return prefix


def join_path(prefix: str, path: str) -> str:
    """Return a path of the source as it is written: with `prefix` if it is relative."""
    if not prefix or PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute():
        return path
    return f'{prefix}/{path}'


_END = re.compile(
    rb'\s*\](?:\s*,\s*"num_classes"\s*:\s*[0-9]+)?(?:\s*,\s*"classes_digest"\s*:\s*"[0-9a-f]*")?\s*\}\s*\Z'
)
_BEGIN = {True: re.compile(rb'\s*\{\s*"annotations"'), False: re.compile(rb'\s*\{\s*"images"')}
_END_BYTES = 4096


@dataclass(frozen=True)
class _ExistingSplit:
    """An existing file of a split."""

    path: Path
    paths: pa.Array
    labeled: bool


class _Names(msgspec.Struct):
    names: list[str]


def append_converted(converted: ConvertedDataset, folder: Path) -> list[str]:
    """Append the images of `converted` to the data set in `folder`; return lines with the numbers of new images.

    Classes are matched by name; new ones get labels after the existing ones, so that no label changes. Images that one
    of the splits contains are skipped. Either all files are replaced or none.

    Raises:
        UserError: `folder` contains no converted data set or one with other formatting, or as in write_converted.
    """
    if not file_exists(folder / 'classes.json'):
        raise UserError(f'{folder / "classes.json"}: no such file; --append needs a folder that was converted before')
    with wait_for_lock(folder):
        old_names, old_parents = _read_classes(folder / 'classes.json')
        old = _read_splits(folder, old_names)
        with replace_together(folder):
            return _append(converted, folder, old_names, old_parents, old)


def _append(
    converted: ConvertedDataset,
    folder: Path,
    old_names: list[str],
    old_parents: list[list[str]],
    old: dict[str, _ExistingSplit],
) -> list[str]:
    existing = set(old_names)
    added = [name for name in converted.names if name not in existing]
    converted.warnings.extend(name_warnings(added, known=old_names))
    names = old_names + added
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[name] for name in converted.names], np.int32)
    for name, split in converted.splits.items():
        check_split(name, split, converted.root)
    prefix, digest = path_prefix(converted.root, folder), names_digest(names)
    lines, paths = [], {name: folder / f'converted_{name}.json' for name in SPLITS}
    for name in [name for name in SPLITS if name in old or name in converted.splits]:
        new, num_skipped = _new_images(name, converted, labels, old, prefix)
        if name not in old and not len(new):
            lines.append(f'{paths[name]}: not written, since all {num_skipped:,} images are in the set already')
            continue
        with replace_atomically(paths[name]) as temporary:
            if name in old:
                _extend(old[name], new, temporary, len(names), digest)
            else:
                write_split(temporary, new, len(names), digest, '')
        lines.append(
            f'{paths[name]}: {count_of(len(new), "image")} added'
            + (f', {num_skipped:,} skipped' if num_skipped else '')
        )
    parents = old_parents and old_parents + _parents_of(converted, added)
    write_bytes(folder / 'classes.json', encode_classes(names, parents or None))
    lines.append(
        f'{folder / "classes.json"}: {count_of(len(added), "class", "classes")} added, {len(names):,} in total'
    )
    return lines


def _read_classes(path: Path) -> tuple[list[str], list[list[str]]]:
    names = read_json(path, _Names, max_bytes=MAX_JSON_BYTES).names
    classes = read_classes(path, len(names))
    assert classes is not None
    return classes.names, classes.parents


def _read_splits(folder: Path, class_names: list[str]) -> dict[str, _ExistingSplit]:
    existing, num_classes, digest = {}, len(class_names), names_digest(class_names)
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
        if split.classes_digest not in ('', digest):
            raise UserError(
                f'{path}: is of another conversion than classes.json, which has other class names; convert all images '
                'again, or remove the former'
            )
        existing[name] = _ExistingSplit(path, split.paths.arrow, split.labeled)
    return existing


def _new_images(
    name: str, converted: ConvertedDataset, labels: np.ndarray, old: dict[str, _ExistingSplit], prefix: str
) -> tuple[ConvertedSplit, int]:
    """Return the new images of a split, with paths as they are written, and the number of skipped ones."""
    split = converted.splits.get(name)
    if split is None:
        return ConvertedSplit([], None if name in old and not old[name].labeled else np.zeros(0, np.int32)), 0
    labeled = split.labels is not None
    if name in old and old[name].labeled != labeled:
        has = {True: 'has labels', False: 'has no labels'}
        raise UserError(f'{old[name].path} {has[old[name].labeled]}, but the {name} split of SOURCE {has[labeled]}')
    written = pa.array([join_path(prefix, path) for path in split.paths], pa.large_string())
    composed, exists = comparable_paths(written), np.zeros(len(split), bool)
    # In any split: an image that SOURCE has in another split must not be in both.
    for other in old.values():
        known = _intersection(comparable_paths(other.paths), composed)
        exists |= pc.is_in(composed, value_set=known).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(~exists)
    paths = written.take(pa.array(rows)).to_pylist()
    return ConvertedSplit(paths, None if split.labels is None else labels[split.labels[rows]]), int(exists.sum())


def _intersection(many: pa.Array, few: pa.Array) -> pa.Array:
    many = many.cast(few.type)
    return many.filter(pc.is_in(many, value_set=few))


def _extend(old: _ExistingSplit, new: ConvertedSplit, target: Path, num_classes: int, digest: str) -> None:
    """Write the entries of the old file, byte by byte, and the new ones after them."""
    size = old.path.stat().st_size
    with open(old.path, 'rb') as source, open(target, 'wb') as file:
        source.seek(max(0, size - _END_BYTES))
        end = _END.search(source.read())
        source.seek(0)
        if end is None or not _BEGIN[old.labeled].match(source.read(_END_BYTES)):
            raise UserError(f'{old.path}: not written by tools/convert.py; convert all images again')
        source.seek(0)
        shutil.copyfileobj(source, file)
        file.truncate(max(0, size - _END_BYTES) + end.start())
        file.seek(0, 2)
        file.write(b',\n' if len(new) else b'\n')
        file.writelines(encode_entries(new, ''))
        file.write(end_of_file(num_classes if old.labeled else None, digest))
    read = read_annotations(target, use_cache=False) if old.labeled else read_test_images(target, num_classes)
    if len(read) != len(old.paths) + len(new):
        raise UserError(f'{old.path}: has other lists besides its images; convert all images again')


def _parents_of(converted: ConvertedDataset, names: list[str]) -> list[list[str]]:
    if converted.parents is None:
        return [[] for _ in names]
    parents_of = dict(zip(converted.names, converted.parents, strict=True))
    return [parents_of[name] for name in names]
