"""What is wrong with an annotation file, in one line: the slow way, taken once the fast one has given up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from lib.errors import UserError

SHOWN = 10
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
FORM = '{"annotations": [{"category_id": 0, "fpath": "..."}, ...], "num_classes": 3}'
_MAX_CLASSES = 2**31 - 1  # labels are int32


def parse(path: str | Path, data: bytes) -> Any:
    """Decode any JSON. Raises UserError when it is none."""
    try:
        return msgspec.json.decode(data)
    except NOT_JSON as error:
        raise UserError(f'{path}: not valid JSON ({error}; {len(data)} bytes)') from None


def faults_of(path: str | Path, tree: Any) -> str:
    """Say what is wrong with a parsed file that the typed reader refused."""
    if not isinstance(tree, dict) or not isinstance(tree.get('annotations'), list):
        return f'{path}: must be {FORM}'
    num_classes = tree.get('num_classes')
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        return f'{path}: num_classes is {num_classes!r}, but must be a whole number, at least 1'
    if num_classes > _MAX_CLASSES:
        return f'{path}: num_classes is {num_classes}, but must be at most {_MAX_CLASSES}'
    if not tree['annotations']:
        return f'{path}: lists no images'
    return fault_line(path, list(entry_faults(tree['annotations'], num_classes, 'fpath')))


def entry_faults(entries: list, num_classes: int | None, name: str) -> Iterator[str]:
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


def fault_line(path: str | Path, faults: list[str]) -> str:
    """Return the first faults, and how many there are."""
    shown = '; '.join(faults[:SHOWN])
    more = f'; and {len(faults) - SHOWN} more' if len(faults) > SHOWN else ''
    return f'{path}: {shown}{more} ({len(faults)} faulty in all)'


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + '...'
