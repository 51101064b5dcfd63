"""Faults of annotation files, in one line each; they are searched in the decoded file once a parser has failed."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.dataset.annotation_rows import MAX_CLASSES, has_duplicates
from lib.dataset.paths import comparable_paths
from lib.errors import UserError, is_unicode, shown, unquoted
from lib.runtime.text import decode_json, whole

ANNOTATION_FORM = '{"annotations": [{"category_id": 0, "fpath": "..."}, ...], "num_classes": 3}'
_CONVERTER = 'python tools/convert.py --help'
MAX_SHOWN = 10


def decode_annotations(path: str | Path, data: bytes) -> Any:
    """Decode an annotation file. Raises UserError, with a hint if the file is no JSON file by its name."""
    try:
        return decode_json(path, data)
    except UserError as error:
        if Path(path).suffix.lower() not in ('.csv', '.tsv', '.txt'):
            raise
        raise UserError(f'{error}; for CSV files and lists: {_CONVERTER}') from None


def describe_faults(path: str | Path, tree: Any) -> str:
    """Return the error line for a decoded annotation file that the typed parser rejected."""
    if not isinstance(tree, dict) or not isinstance(tree.get('annotations'), list):
        return f'{path}: must be {ANNOTATION_FORM}'
    if tree.get('num_classes') is None:
        return f'{path}: has no num_classes, but must be {ANNOTATION_FORM}'
    num_classes = whole(tree['num_classes'])
    if num_classes is None or num_classes < 1:
        return f'{path}: num_classes is {shown(tree["num_classes"])}, but must be a whole number, at least 1'
    if num_classes > MAX_CLASSES:
        return f'{path}: num_classes is {shown(num_classes)}, but must be at most {MAX_CLASSES}'
    if not tree['annotations']:
        return f'{path}: lists no images'
    entries = tree['annotations']
    line = join_faults(path, list(entry_faults(entries, num_classes, 'fpath', with_weights=True)))
    are_texts = any(isinstance(entry, dict) and isinstance(entry.get('category_id'), str) for entry in entries)
    return f'{line}; for text labels: {_CONVERTER}' if are_texts else line


def are_weights(values: np.ndarray) -> bool:
    """Return whether all of the numbers may be weights of images in the loss: above 0 and at most 1."""
    return bool(((values > 0) & (values <= 1)).all())


def entry_faults(entries: list, num_classes: int | None, path_key: str, *, with_weights: bool = False) -> Iterator[str]:
    """Yield one phrase per faulty entry; with `num_classes` None, labels are not checked."""
    for position, entry in enumerate(entries):
        name = f'entry {position}'
        if not isinstance(entry, dict):
            yield f'{name} is {shown(entry)}, not an object'
            continue
        path, label = entry.get(path_key), whole(entry.get('category_id'))
        if not isinstance(path, str) or not path:
            yield f'{name} has no {path_key}' if path is None else f'{name}: {path_key} is {shown(path)}, not a path'
        elif not is_unicode(path):
            yield f'{name}: {path_key} is {shown(path)}, not Unicode: rename the file'
        elif num_classes is None:
            continue
        elif label is None:
            yield f'{name}: category_id is {shown(entry.get("category_id"))}, not a whole number'
        elif not 0 <= label < num_classes:
            yield f'{name}: category_id is {shown(label)}, but must be from 0 to {num_classes - 1}'
        elif with_weights and not _is_weight(entry.get('weight', 1)):
            yield (
                f'{name}: weight is {shown(entry["weight"])}, but must be above 0 and at most 1, the weight of the '
                'image in the loss; rename the field if it means something else'
            )


def _is_weight(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value <= 1 and bool(np.float32(value) > 0)


def join_faults(path: str | Path, faults: list[str]) -> str:
    """Return the first faults and their number in one line."""
    first = '; '.join(faults[:MAX_SHOWN])
    more = f'; and {len(faults) - MAX_SHOWN} more' if len(faults) > MAX_SHOWN else ''
    return f'{path}: {first}{more} ({len(faults)} faulty in all)'


def first_phrases(phrases: Iterable[str]) -> str:
    """Return the first phrases, separated by commas."""
    first = list(islice(phrases, MAX_SHOWN + 1))
    return ', '.join(first[:MAX_SHOWN]) + ', ...' * (len(first) > MAX_SHOWN)


def may_have_duplicates(paths: pa.Array, fingerprints: np.ndarray) -> bool:
    """Return whether a path may occur twice, by the fingerprints of the paths if these are in their comparable form."""
    composed = comparable_paths(paths)
    if composed is paths:
        return has_duplicates(fingerprints)
    return int(pc.count_distinct(composed).as_py()) < len(composed)


def duplicate_warnings(paths: pa.Array) -> list[str]:
    """Return a warning that names the first entries with the path of an earlier one."""
    codes = comparable_paths(paths).dictionary_encode().indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    repeated = np.setdiff1d(np.arange(len(codes)), first, assume_unique=True)
    if not len(repeated):
        return []
    subject = '1 entry repeats' if len(repeated) == 1 else f'{len(repeated)} entries repeat'
    entries = (f'entry {row} ({unquoted(str(paths[int(row)]))})' for row in repeated)
    return [f'{subject} an earlier fpath: {first_phrases(entries)}']
