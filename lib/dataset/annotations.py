"""Annotation files: JSON in, columns out; errors name faulty entries by their position."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeGuard

import msgspec
import numpy as np
import pyarrow as pa

from lib.dataset.annotation_cache import CacheDamaged, CachedColumns, CacheSource, FileStamp, cache_paths, load, save
from lib.dataset.annotation_faults import (
    ANNOTATION_FORM,
    are_weights,
    decode_annotations,
    describe_faults,
    duplicate_warnings,
    entry_faults,
    first_phrases,
    join_faults,
    may_have_duplicates,
)
from lib.dataset.annotation_json import ParsedAnnotations, ParsedPrefix, UnsupportedForm, parse_in_blocks, parse_whole
from lib.dataset.annotation_rows import MAX_CLASSES
from lib.dataset.index import class_starts, rows_by_class
from lib.dataset.paths import PathColumn
from lib.errors import UserError, is_unicode, unquoted
from lib.runtime.log import LOGGER
from lib.runtime.read_file import MAX_JSON_BYTES, check_memory, open_regular, reason_of
from lib.runtime.storage import exists
from lib.runtime.text import decode_json, digest_of_names, nfc_list, whole

# Parsing a smaller file takes less time than opening a cache, and no file is written into its folder.
CACHED_FROM_BYTES = 1 << 20


@dataclass(frozen=True)
class Annotations:
    """The columns of one split.

    Attributes:
        paths: (num_images,) as written in the file.
        labels: (num_images,) int32; all -1 in a split without labels.
        num_classes: number of classes; labels are below it.
        source: name of the split in messages.
        warnings: duplicates and empty classes, which are no errors.
        by_class: rows sorted by class, ascending within a class; None if not computed yet.
        classes_digest: `names_digest` of the class names that the labels refer to; '' in files made elsewhere.
        weights: (num_images,) float32 weights of the images in the loss, above 0 and at most 1; None: all 1.
    """

    paths: PathColumn
    labels: np.ndarray
    num_classes: int
    source: str
    warnings: list[str] = field(default_factory=list)
    by_class: np.ndarray | None = None
    classes_digest: str = ''
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labeled(self) -> bool:
        """Return True if every image has a label."""
        return len(self.labels) > 0 and bool((self.labels >= 0).all())


@dataclass(frozen=True)
class ClassNames:
    """Names of the classes. Here they enter the program, and all that compares names relies on their form, NFC.

    Attributes:
        names: (num_classes,) the original labels.
        parents: (num_classes,) ancestors of each class, root first; empty if unknown.
    """

    names: list[str]
    parents: list[list[str]]

    def __post_init__(self) -> None:
        object.__setattr__(self, 'names', nfc_list(self.names))
        object.__setattr__(self, 'parents', [nfc_list(ancestors) for ancestors in self.parents])


def read_annotations(path: str | Path, *, use_cache: bool = True) -> Annotations:
    """Read a labeled split (training, validation) in the form `{"annotations": [...], "num_classes": C}`.

    With `use_cache`, large files are parsed once: see lib.dataset.annotation_cache.

    Raises:
        UserError: no such file, broken JSON, or faulty entries: the first ten by position, then their number.
    """
    with _open(path) as file:
        status = os.fstat(file.fileno())
        if use_cache and status.st_size >= CACHED_FROM_BYTES:
            columns = _cached_columns(Path(path), file)
        else:
            columns = _columns_of(_parse(path, file), FileStamp.of(status), lambda columns: columns)
    source = columns.source
    warnings = [f'{path}: {warning}' for warning in [*source.warnings, *_empty_classes(path, columns.starts)]]
    return Annotations(
        columns.paths,
        columns.labels,
        source.num_classes,
        str(path),
        warnings,
        columns.by_class,
        source.classes_digest,
        columns.weights,
    )


def read_test_images(path: str | Path, num_classes: int) -> Annotations:
    """Read a test split: `{"images": [{"image_id": "x.jpg"}, ...]}`, or annotations with or without labels.

    Raises:
        UserError: as read_annotations; also when labels are not below `num_classes`.
    """
    tree: Any = decode_json(path, _read(path))
    if isinstance(tree, dict) and isinstance(tree.get('annotations'), list):
        entries, path_key = tree['annotations'], 'fpath'
    elif isinstance(tree, dict) and isinstance(tree.get('images'), list):
        entries, path_key = tree['images'], 'image_id'
    else:
        raise UserError(f'{path}: must be {{"images": [{{"image_id": "x.jpg"}}, ...]}} or {ANNOTATION_FORM}')
    if not entries:
        raise UserError(f'{path}: lists no images')
    with_labels = path_key == 'fpath' and any(isinstance(entry, dict) and 'category_id' in entry for entry in entries)
    faults = list(entry_faults(entries, num_classes if with_labels else None, path_key))
    if faults:
        raise UserError(join_faults(path, faults))
    labels = [whole(entry['category_id']) for entry in entries] if with_labels else [-1] * len(entries)
    paths = pa.array((entry[path_key] for entry in entries), pa.large_string())
    digest = digest_of_names(tree.get('classes_digest'))
    return Annotations(PathColumn(paths), np.array(labels, np.int32), num_classes, str(path), classes_digest=digest)


def read_classes(path: str | Path, num_classes: int, source: str = 'the annotation file') -> ClassNames | None:
    """Read classes.json (`{"names": [...], "parents": [[...], ...]}`) of the annotations `source`; None if absent.

    Raises:
        UserError: it exists, but has another form or not `num_classes` names.
    """
    if not exists(path):
        return None
    tree: Any = decode_json(path, _read(path))
    names = tree.get('names') if isinstance(tree, dict) else None
    if not _is_list_of_texts(names):
        raise UserError(f'{path}: must be {{"names": ["...", ...]}}, one text per class')
    if len(names) != num_classes:
        raise UserError(f'{path}: has {len(names)} names, but {source} has num_classes {num_classes}')
    parents = tree.get('parents') or []
    if not isinstance(parents, list) or not all(_is_list_of_texts(ancestors) for ancestors in parents):
        raise UserError(f'{path}: parents must be [["Fruit", "Apple"], ...], one list of texts per class')
    if parents and len(parents) != num_classes:
        raise UserError(f'{path}: has {len(parents)} parents for {num_classes} names')
    return ClassNames(names, parents)


def _is_list_of_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) and is_unicode(text) for text in value)


@contextmanager
def _open(path: str | Path) -> Iterator[BufferedReader]:
    try:
        with open_regular(path, max_bytes=MAX_JSON_BYTES) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({reason_of(error)})') from None


def _read(path: str | Path) -> bytes:
    with _open(path) as file:
        check_memory(path, os.fstat(file.fileno()).st_size)
        return file.read()


def _cached_columns(path: Path, file: BufferedReader) -> CachedColumns:
    """Return the columns in the cache, which is written or updated if it does not match the file."""
    stamp = FileStamp.of(os.fstat(file.fileno()))
    cached = _load_best(path, stamp)
    if cached is not None and cached.source.stamp == stamp:
        return cached
    if cached is not None and cached.source.stamp.size == stamp.size:
        if hashlib.file_digest(file, 'sha256').hexdigest() == cached.source.digest:
            return _save(path, file, replace(cached, source=msgspec.structs.replace(cached.source, stamp=stamp)))
        file.seek(0)
    if cached is not None:
        LOGGER.info('%s: has changed since it was cached, parsing it again', path)
    parsed = _parse(path, file, _reusable_prefix(cached, stamp))
    return _columns_of(parsed, stamp, lambda columns: _save(path, file, columns))


def _save(path: Path, file: BufferedReader, columns: CachedColumns) -> CachedColumns:
    """Write the cache and return the columns in it; return `columns` if it cannot be written."""
    if FileStamp.of(os.fstat(file.fileno())) != columns.source.stamp:
        return columns  # the file is being written to
    cache_path = save(path, columns)
    if cache_path is None:
        LOGGER.info('%s: no folder for its cache is writable, the next run parses it again', path)
        return columns
    try:
        return load(cache_path) or columns
    except CacheDamaged:
        return columns


def _load_best(path: Path, stamp: FileStamp) -> CachedColumns | None:
    """Return the cache with this stamp, else one that may still be useful."""
    best = None
    for cache_path in cache_paths(path):
        try:
            cached = load(cache_path)
        except CacheDamaged as reason:
            LOGGER.info('%s: %s is damaged (%s), parsing the file again', path, cache_path, reason)
            continue
        if cached is not None and (best is None or cached.source.stamp == stamp):
            best = cached
    return best


def _reusable_prefix(cached: CachedColumns | None, stamp: FileStamp) -> ParsedPrefix | None:
    """Return the prefix of the cached file if the file has grown."""
    if cached is None or not cached.source.prefix[2] or stamp.size <= cached.source.stamp.size:
        return None
    num_bytes, digest, num_rows = cached.source.prefix
    weights = None if cached.weights is None else cached.weights[:num_rows]
    return ParsedPrefix(num_bytes, digest, cached.paths.arrow[:num_rows], np.asarray(cached.labels)[:num_rows], weights)


def _parse(path: str | Path, file: BufferedReader, prefix: ParsedPrefix | None = None) -> ParsedAnnotations:
    """Parse and check a file. Raises UserError."""
    try:
        parsed = parse_in_blocks(file, prefix)
    except UnsupportedForm:
        file.seek(0)
        check_memory(path, os.fstat(file.fileno()).st_size)
        data = file.read()
        try:
            parsed = parse_whole(data)
        except UnsupportedForm:
            raise UserError(describe_faults(path, decode_annotations(path, data))) from None
    if _is_faulty(parsed):
        file.seek(0)
        raise UserError(describe_faults(path, decode_annotations(path, file.read())))
    return parsed


def _columns_of(
    parsed: ParsedAnnotations, stamp: FileStamp, store: Callable[[CachedColumns], CachedColumns]
) -> CachedColumns:
    """Return store(columns), while another thread searches for duplicates.

    If there are any, the columns are stored a second time, with a warning.
    """
    with ThreadPoolExecutor(1) as worker:
        search = worker.submit(may_have_duplicates, parsed.paths, parsed.fingerprints)
        starts = class_starts(parsed.labels, parsed.num_classes)
        by_class = rows_by_class(parsed.labels, parsed.num_classes)
        source = CacheSource(stamp, parsed.digest, parsed.prefix, parsed.num_classes, [], parsed.classes_digest)
        columns = CachedColumns(PathColumn(parsed.paths), parsed.labels, starts, by_class, source, parsed.weights)
        stored = store(columns)
        duplicates = duplicate_warnings(parsed.paths) if search.result() else []
    with_warnings = replace(columns, source=msgspec.structs.replace(source, warnings=duplicates))
    return store(with_warnings) if duplicates else stored


def _is_faulty(parsed: ParsedAnnotations) -> bool:
    labels = parsed.labels
    if parsed.weights is not None and not are_weights(parsed.weights):
        return True
    return not 1 <= parsed.num_classes <= MAX_CLASSES or bool(
        not len(labels) or labels.min() < 0 or labels.max() >= parsed.num_classes or parsed.has_empty_path
    )


def _empty_classes(path: str | Path, starts: np.ndarray) -> list[str]:
    empty = np.flatnonzero(starts[1:] == starts[:-1]).tolist()
    if not empty:
        return []
    names: Iterable[str] = map(str, empty)
    with suppress(UserError):  # a fault of classes.json is an error where the names are needed
        if known := read_classes(Path(path).with_name('classes.json'), len(starts) - 1):
            names = (unquoted(known.names[label]) for label in empty)
    return [f'{len(empty)} of {len(starts) - 1} classes have no image: {first_phrases(names)}']
