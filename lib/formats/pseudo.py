"""Training annotations with pseudo-labels: their entries have the source 'pseudo' and a weight, the others stay."""

import filecmp
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from lib.dataset.annotations import ClassNames
from lib.formats.converted import ConvertedSplit
from lib.formats.write import encode_classes, encode_entries, write_split
from lib.runtime.files import replace_atomically, replace_together, write_bytes
from lib.runtime.json_file import read_json
from lib.runtime.read_file import MAX_JSON_BYTES, open_regular
from lib.runtime.text import names_digest

SOURCE = 'pseudo'
_ROWS_PER_CHUNK = 10_000  # encoded at a time
_BLOCK_BYTES = 4096


class _Origin(msgspec.Struct):
    source: object = ''


class _PseudoEntry(msgspec.Struct):
    category_id: int
    fpath: str
    source: str
    weight: float


@dataclass(frozen=True)
class TrainingEntries:
    """A training split as annotated, without earlier pseudo-labels.

    Attributes:
        entries: JSON objects as they are in the file; or the images of class folders, which have no file.
        others: further values of the file, as they are.
        rows: (n,) int64, of the split, those that are no pseudo-labels.
    """

    entries: list[msgspec.Raw] | ConvertedSplit
    others: dict[str, msgspec.Raw]
    rows: np.ndarray


@dataclass(frozen=True)
class PseudoEntries:
    """Pseudo-labeled images.

    Attributes:
        paths: relative to the root of the training images.
        labels: (k,) int64 labels of the training split.
        weights: (k,) float64 weights in the loss, above 0 and at most 1.
    """

    paths: list[str]
    labels: np.ndarray
    weights: np.ndarray


def read_training_entries(path: Path) -> TrainingEntries:
    """Read an annotation JSON that lib.dataset.annotations accepts. Raises: UserError."""
    content = read_json(path, dict[str, msgspec.Raw], max_bytes=MAX_JSON_BYTES)
    entries = msgspec.json.decode(content.pop('annotations'), type=list[msgspec.Raw])
    rows = [row for row, entry in enumerate(entries) if not _is_pseudo(bytes(entry))]
    return TrainingEntries([entries[row] for row in rows], content, np.array(rows, np.int64))


def _is_pseudo(entry: bytes) -> bool:
    return b'"source"' in entry and msgspec.json.decode(entry, type=_Origin).source == SOURCE


def holds_pseudo_labels(path: Path) -> bool:
    """Return whether a file was written by `write_pseudo_labeled`: its pseudo-labels are its last entries."""
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 16 * _BLOCK_BYTES))
        return b'"source":"pseudo"' in file.read()


def write_pseudo_labeled(
    path: Path,
    train: TrainingEntries,
    pseudo: PseudoEntries,
    num_classes: int,
    classes: ClassNames | None,
    valid: ConvertedSplit | None = None,
) -> list[Path]:
    """Write training images and pseudo-labels, one entry per line; return the files. All are replaced, or none.

    Args:
        classes: classes of the labels, for classes.json beside the file unless there is one; None: they have no names.
        valid: written beside it as NAME_val.json; None: the validation split has a file already.
    """
    others = {key: bytes(value) for key, value in train.others.items()}
    others['num_classes'] = b'%d' % num_classes
    if classes is not None:
        others['classes_digest'] = msgspec.json.encode(names_digest(classes.names))
    written, classes_path = [path], path.with_name('classes.json')
    with replace_together(path.parent):
        with replace_atomically(path) as temporary, open(temporary, 'wb') as file:
            file.write(b'{"annotations": [\n')
            file.writelines(_known_entries(train.entries))
            file.writelines(_pseudo_entries(pseudo))
            file.write(b'\n]')
            file.writelines(b',\n%b: %b' % (msgspec.json.encode(key), value) for key, value in others.items())
            file.write(b'}\n')
        if classes is not None and not classes_path.exists():
            write_bytes(classes_path, encode_classes(classes.names, classes.parents or None))
            written.append(classes_path)
        if valid is not None:
            digest = '' if classes is None else names_digest(classes.names)
            written.append(path.with_name(f'{path.stem}_val.json'))
            with replace_atomically(written[-1]) as temporary:
                write_split(temporary, valid, num_classes, digest, '')
    return written


def _known_entries(entries: list[msgspec.Raw] | ConvertedSplit) -> Iterator[bytes]:
    """Yield entries in chunks, with a comma after each."""
    if isinstance(entries, ConvertedSplit):
        for chunk in encode_entries(entries, ''):
            yield chunk.removesuffix(b',\n').removesuffix(b'\n') + b',\n'
        return
    for start in range(0, len(entries), _ROWS_PER_CHUNK):
        yield b''.join(bytes(entry) + b',\n' for entry in entries[start : start + _ROWS_PER_CHUNK])


def _pseudo_entries(pseudo: PseudoEntries) -> Iterator[bytes]:
    """Yield entries in chunks, with commas between them."""
    encode = msgspec.json.Encoder().encode
    for start in range(0, len(pseudo.paths), _ROWS_PER_CHUNK):
        rows = slice(start, start + _ROWS_PER_CHUNK)
        columns = zip(pseudo.labels[rows].tolist(), pseudo.paths[rows], pseudo.weights[rows].tolist(), strict=True)
        entries = [encode(_PseudoEntry(label, path, SOURCE, weight)) for label, path, weight in columns]
        yield (b',\n' if start else b'') + b',\n'.join(entries)


def are_copies(paths: list[str], known: Iterable[str]) -> np.ndarray:
    """Return which files have the content of a known file, or of one before them in the list, (n,) bool.

    Files are read whole only if their sizes and a block in their middle agree.
    """
    first_of: dict[tuple[int, bytes], int] = {}
    is_copy = np.zeros(len(paths), bool)
    for number, path in enumerate(paths):
        content = _content_of(path)
        if content is not None:
            first = first_of.setdefault(content, number)
            is_copy[number] = first != number and _are_equal(paths[first], path)
    sizes = {size for size, _ in first_of}
    for path in known if sizes else ():
        content = _content_of(path, sizes)
        if content in first_of and _are_equal(paths[first_of[content]], path):
            is_copy[first_of[content]] = True
    return is_copy


def _are_equal(path: str, other: str) -> bool:
    try:
        return filecmp.cmp(path, other, shallow=False)
    except OSError:
        return False


def _content_of(path: str, sizes: set[int] | None = None) -> tuple[int, bytes] | None:
    """Return size and digest of a file for comparisons; None if it cannot be read, or has none of the sizes."""
    try:
        size = os.stat(path).st_size
        if sizes is not None and size not in sizes:
            return None
        with open_regular(path) as file:
            file.seek(max(0, size // 2 - _BLOCK_BYTES // 2))
            return size, hashlib.blake2b(file.read(_BLOCK_BYTES), digest_size=16).digest()
    except OSError:
        return None
