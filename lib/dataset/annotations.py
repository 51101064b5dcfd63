"""Annotation files: JSON in, columns out, faults named by their position."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa

from lib.dataset.annotation_cache import About, Columns, Damaged, Stamp, load, places, save
from lib.dataset.annotation_json import Beginning, OtherForm, Parsed, parse_in_blocks, parse_whole
from lib.dataset.annotation_rows import FORM, SHOWN, entry_faults, fault_line, faults_of, has_equals, parse
from lib.dataset.index import class_starts, rows_by_class
from lib.dataset.paths import PathColumn
from lib.errors import UserError
from lib.runtime.log import LOGGER

# A smaller file is parsed in less time than it takes to find a cache, and its folder stays as it is.
CACHED_FROM_BYTES = 1 << 20


@dataclass(frozen=True)
class Annotations:
    """The columns of one split.

    Attributes:
        paths: (num_images,) as written in the file.
        labels: (num_images,) int32; -1 everywhere in a split without labels.
        num_classes: number of classes; labels are below it.
        source: what to call this split in messages.
        warnings: what is odd but can be worked with (duplicates, empty classes).
        by_class: rows sorted by class, in rising order within one; None where nobody has sorted them yet.
    """

    paths: PathColumn
    labels: np.ndarray
    num_classes: int
    source: str
    warnings: list[str] = field(default_factory=list)
    by_class: np.ndarray | None = None

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


def read_annotations(path: str | Path, *, keep: bool = True) -> Annotations:
    """Read a labelled split (training, validation) in the form `{"annotations": [...], "num_classes": C}`.

    With `keep`, large files are parsed once: see lib.dataset.annotation_cache.

    Raises:
        UserError: no such file, broken JSON, or faulty entries: the first ten by position, then their number.
    """
    with _opened(path) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            file = BytesIO(file.read())  # a pipe is read once
        if keep and status.st_size >= CACHED_FROM_BYTES:
            columns = _kept_columns(Path(path), file)
        else:
            columns = _columns_of(_parsed(path, file), Stamp.of(status), lambda columns: columns)
    warnings = [f'{path}: {warning}' for warning in columns.about.warnings]
    num_classes = columns.about.num_classes
    return Annotations(columns.paths, columns.labels, num_classes, str(path), warnings, columns.by_class)


def read_test_images(path: str | Path, num_classes: int) -> Annotations:
    """Read a test split: `{"images": [{"image_id": "x.jpg"}, ...]}`, or annotations with or without labels.

    Raises:
        UserError: as read_annotations; also when labels do not fit `num_classes`.
    """
    tree = parse(path, _read(path))
    if isinstance(tree, dict) and isinstance(tree.get('annotations'), list):
        entries, name = tree['annotations'], 'fpath'
    elif isinstance(tree, dict) and isinstance(tree.get('images'), list):
        entries, name = tree['images'], 'image_id'
    else:
        raise UserError(f'{path}: must be {{"images": [{{"image_id": "x.jpg"}}, ...]}} or {FORM}')
    if not entries:
        raise UserError(f'{path}: lists no images')
    with_labels = name == 'fpath' and any(isinstance(entry, dict) and 'category_id' in entry for entry in entries)
    faults = list(entry_faults(entries, num_classes if with_labels else None, name))
    if faults:
        raise UserError(fault_line(path, faults))
    labels = [entry['category_id'] for entry in entries] if with_labels else [-1] * len(entries)
    paths = pa.array((entry[name] for entry in entries), pa.large_string())
    return Annotations(PathColumn(paths), np.array(labels, np.int32), num_classes, str(path))


def read_classes(path: str | Path, num_classes: int) -> ClassNames | None:
    """Read classes.json (`{"names": [...], "parents": [[...], ...]}`), or return None when there is none.

    Raises:
        UserError: it is there, but not of this form or not of `num_classes` names.
    """
    if not Path(path).exists():
        return None
    tree = parse(path, _read(path))
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


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    try:
        with open(path, 'rb') as file:
            yield file
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None


def _read(path: str | Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def _kept_columns(path: Path, file: BinaryIO) -> Columns:
    """Return the columns out of the cache, which is written or renewed where it does not fit the file."""
    stamp = Stamp.of(os.fstat(file.fileno()))
    kept = _best_kept(path, stamp)
    if kept is not None and kept.about.stamp == stamp:
        return kept
    if kept is not None and kept.about.stamp.size == stamp.size:
        if hashlib.file_digest(file, 'sha256').hexdigest() == kept.about.digest:
            return _saved(path, file, replace(kept, about=msgspec.structs.replace(kept.about, stamp=stamp)))
        file.seek(0)
    if kept is not None:
        LOGGER.info('%s: has changed since its parsed form was kept, so it is parsed again', path)
    parsed = _parsed(path, file, _beginning(kept, stamp))
    return _columns_of(parsed, stamp, lambda columns: _saved(path, file, columns))


def _saved(path: Path, file: BinaryIO, columns: Columns) -> Columns:
    """Return the columns out of the cache, which is written; themselves where it cannot be."""
    if Stamp.of(os.fstat(file.fileno())) != columns.about.stamp:
        return columns  # the file is being written to
    place = save(path, columns)
    if place is None:
        LOGGER.info('%s: no folder takes its parsed form, so the next run parses it again', path)
        return columns
    try:
        return load(place) or columns
    except Damaged:
        return columns


def _best_kept(path: Path, stamp: Stamp) -> Columns | None:
    """Return a cache that is valid by its stamp, else one that may still be of use."""
    found = None
    for place in places(path):
        try:
            kept = load(place)
        except Damaged as reason:
            LOGGER.info('%s: %s is not used, since it is damaged (%s); read anew', path, place, reason)
            continue
        if kept is not None and (found is None or kept.about.stamp == stamp):
            found = kept
    return found


def _beginning(kept: Columns | None, stamp: Stamp) -> Beginning | None:
    """Return what the file begins with if it is the one that was kept, and only grew."""
    if kept is None or not kept.about.beginning[2] or stamp.size <= kept.about.stamp.size:
        return None
    num_bytes, digest, rows = kept.about.beginning
    return Beginning(num_bytes, digest, kept.paths.arrow[:rows], np.asarray(kept.labels)[:rows])


def _parsed(path: str | Path, file: BinaryIO, known: Beginning | None = None) -> Parsed:
    """Parse and check a file. Raises UserError."""
    try:
        parsed = parse_in_blocks(file, known)
    except OtherForm:
        file.seek(0)
        data = file.read()
        try:
            parsed = parse_whole(data)
        except OtherForm:
            raise UserError(faults_of(path, parse(path, data))) from None
    if _is_faulty(parsed):
        file.seek(0)
        raise UserError(faults_of(path, parse(path, file.read())))
    return parsed


def _columns_of(parsed: Parsed, stamp: Stamp, use: Callable[[Columns], Columns]) -> Columns:
    """Return what `use` makes of the columns, while another thread looks for duplicates; are there any, it gets them
    a second time, with the warning.
    """
    with ThreadPoolExecutor(1) as worker:
        may_repeat = worker.submit(has_equals, parsed.prints)
        starts = class_starts(parsed.labels, parsed.num_classes)
        by_class = rows_by_class(parsed.labels, parsed.num_classes)
        about = About(stamp, parsed.digest, parsed.beginning, parsed.num_classes, _empty_classes(starts))
        columns = Columns(PathColumn(parsed.paths), parsed.labels, starts, by_class, about)
        used = use(columns)
        duplicates = _duplicates(parsed.paths) if may_repeat.result() else []
    if not duplicates:
        return used
    return use(replace(columns, about=msgspec.structs.replace(about, warnings=[*duplicates, *about.warnings])))


def _is_faulty(parsed: Parsed) -> bool:
    labels = parsed.labels
    return not 1 <= parsed.num_classes < 2**31 or bool(
        not len(labels) or labels.min() < 0 or labels.max() >= parsed.num_classes or parsed.has_empty_path
    )


def _duplicates(paths: pa.Array) -> list[str]:
    codes = paths.dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    repeated = np.setdiff1d(np.arange(len(codes)), first, assume_unique=True)
    if not len(repeated):
        return []
    named = ', '.join(f'entry {row} ({paths[int(row)]})' for row in repeated[:SHOWN])
    return [f'{len(repeated)} entries repeat an earlier fpath: {named}{", ..." * (len(repeated) > SHOWN)}']


def _empty_classes(starts: np.ndarray) -> list[str]:
    empty = np.flatnonzero(starts[1:] == starts[:-1])
    if not len(empty):
        return []
    named = ', '.join(map(str, empty[:SHOWN]))
    return [f'{len(empty)} of {len(starts) - 1} classes have no image: {named}{", ..." * (len(empty) > SHOWN)}']
