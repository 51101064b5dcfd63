"""Annotation files: JSON in, columns out, faults named by their position."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from lib.errors import UserError

_SHOWN = 10
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_FORM = '{"annotations": [{"category_id": 0, "fpath": "..."}, ...], "num_classes": 3}'


class _Annotation(msgspec.Struct):
    fpath: str
    category_id: int


class _AnnotationFile(msgspec.Struct):
    annotations: list[_Annotation]
    num_classes: int


@dataclass(frozen=True)
class Annotations:
    """The columns of one split.

    Attributes:
        paths: (num_images,) Arrow strings, as written in the file.
        labels: (num_images,) int32; -1 everywhere in a split without labels.
        num_classes: number of classes; labels are below it.
        source: what to call this split in messages.
        warnings: what is odd but can be worked with (duplicates, empty classes).
    """

    paths: pa.LargeStringArray
    labels: np.ndarray
    num_classes: int
    source: str
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return len(self.labels) > 0 and bool((self.labels >= 0).all())


@dataclass(frozen=True)
class ClassNames:
    """Names (original labels) and ancestors (root first) of the classes; `parents` is empty when unknown."""

    names: list[str]
    parents: list[list[str]]


def read_annotations(path: str | Path) -> Annotations:
    """Read a labelled split (training, validation) in the form `{"annotations": [...], "num_classes": C}`.

    Raises:
        UserError: no such file, broken JSON, or faulty entries: the first ten by position, then their number.
    """
    data = _read(path)
    try:
        file = msgspec.json.decode(data, type=_AnnotationFile)
        labels = np.fromiter((entry.category_id for entry in file.annotations), np.int64, len(file.annotations))
    except (*_NOT_JSON, OverflowError):
        raise UserError(_faults(path, _parse(path, data))) from None
    if file.num_classes < 1 or not len(labels) or labels.min() < 0 or labels.max() >= file.num_classes:
        raise UserError(_faults(path, msgspec.json.decode(data)))
    paths = pa.array((entry.fpath for entry in file.annotations), pa.large_string())
    if not all(entry.fpath for entry in file.annotations):
        raise UserError(_faults(path, msgspec.json.decode(data)))
    warnings = [*_duplicates(path, paths), *_empty_classes(path, labels, file.num_classes)]
    return Annotations(paths, labels.astype(np.int32), file.num_classes, str(path), warnings)


def read_test_images(path: str | Path, num_classes: int) -> Annotations:
    """Read a test split: `{"images": [{"image_id": "x.jpg"}, ...]}`, or annotations with or without labels.

    Raises:
        UserError: as read_annotations; also when labels do not fit `num_classes`.
    """
    tree = _parse(path, _read(path))
    if isinstance(tree, dict) and isinstance(tree.get('annotations'), list):
        entries, name = tree['annotations'], 'fpath'
    elif isinstance(tree, dict) and isinstance(tree.get('images'), list):
        entries, name = tree['images'], 'image_id'
    else:
        raise UserError(f'{path}: must be {{"images": [{{"image_id": "x.jpg"}}, ...]}} or {_FORM}')
    if not entries:
        raise UserError(f'{path}: lists no images')
    with_labels = name == 'fpath' and any(isinstance(entry, dict) and 'category_id' in entry for entry in entries)
    faults = list(_entry_faults(entries, num_classes if with_labels else None, name))
    if faults:
        raise UserError(_fault_line(path, faults))
    labels = [entry['category_id'] for entry in entries] if with_labels else [-1] * len(entries)
    paths = pa.array((entry[name] for entry in entries), pa.large_string())
    return Annotations(paths, np.array(labels, np.int32), num_classes, str(path))


def read_classes(path: str | Path, num_classes: int) -> ClassNames | None:
    """Read classes.json (`{"names": [...], "parents": [[...], ...]}`), or return None when there is none.

    Raises:
        UserError: it is there, but not of this form or not of `num_classes` names.
    """
    if not Path(path).exists():
        return None
    tree = _parse(path, _read(path))
    names = tree.get('names') if isinstance(tree, dict) else None
    if not _is_list_of_texts(names):
        raise UserError(f'{path}: must be {{"names": ["...", ...]}}, one text a class')
    if len(names) != num_classes:
        raise UserError(f'{path}: has {len(names)} names, but the annotations have num_classes {num_classes}')
    parents = tree.get('parents') or []
    if not isinstance(parents, list) or not all(_is_list_of_texts(ancestors) for ancestors in parents):
        raise UserError(f'{path}: parents must be [["Fruit", "Apple"], ...], one list of texts a class')
    if parents and len(parents) != num_classes:
        raise UserError(f'{path}: has {len(parents)} parents for {num_classes} names')
    return ClassNames(names, parents)


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None


def _parse(path: str | Path, data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except _NOT_JSON as error:
        raise UserError(f'{path}: not valid JSON ({error}; {len(data)} bytes)') from None


def _faults(path: str | Path, tree: Any) -> str:
    """Say what is wrong with a parsed file that the typed reader refused."""
    if not isinstance(tree, dict) or not isinstance(tree.get('annotations'), list):
        return f'{path}: must be {_FORM}'
    num_classes = tree.get('num_classes')
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        return f'{path}: num_classes is {num_classes!r}, but must be a whole number, at least 1'
    if not tree['annotations']:
        return f'{path}: lists no images'
    return _fault_line(path, list(_entry_faults(tree['annotations'], num_classes, 'fpath')))


def _entry_faults(entries: list, num_classes: int | None, name: str) -> Iterator[str]:
    """Yield one phrase for each faulty entry; `num_classes` None means that labels are not looked at."""
    for position, entry in enumerate(entries):
        where = f'entry {position}'
        if not isinstance(entry, dict):
            yield f'{where} is {_short(entry)}, not an object'
            continue
        text, label = entry.get(name), entry.get('category_id')
        if not isinstance(text, str) or not text:
            yield (f'{where} has no {name}' if text is None else f'{where}: {name} is {_short(text)}, not a path')
        elif num_classes is None:
            continue
        elif isinstance(label, bool) or not isinstance(label, int):
            yield f'{where}: category_id is {_short(label)}, not a whole number'
        elif not 0 <= label < num_classes:
            yield f'{where}: category_id is {label}, but must be from 0 to {num_classes - 1}'


def _fault_line(path: str | Path, faults: list[str]) -> str:
    shown = '; '.join(faults[:_SHOWN])
    more = f'; and {len(faults) - _SHOWN} more' if len(faults) > _SHOWN else ''
    return f'{path}: {shown}{more} ({len(faults)} faulty in all)'


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + '...'


def _duplicates(path: str | Path, paths: pa.LargeStringArray) -> list[str]:
    codes = paths.dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    repeated = np.setdiff1d(np.arange(len(codes)), first, assume_unique=True)
    if not len(repeated):
        return []
    named = ', '.join(f'entry {row} ({paths[int(row)]})' for row in repeated[:_SHOWN])
    return [f'{path}: {len(repeated)} entries repeat an earlier fpath: {named}{", ..." * (len(repeated) > _SHOWN)}']


def _empty_classes(path: str | Path, labels: np.ndarray, num_classes: int) -> list[str]:
    empty = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if not len(empty):
        return []
    named = ', '.join(map(str, empty[:_SHOWN]))
    return [f'{path}: {len(empty)} of {num_classes} classes have no image: {named}{", ..." * (len(empty) > _SHOWN)}']
