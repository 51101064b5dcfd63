"""The parts of a prediction (TEST.PART): the folders of their stores, and merging them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.commands.predict_inputs import Part
from lib.errors import UserError
from lib.inference.sinks import Columns
from lib.runtime.column_files import StoreDamaged
from lib.runtime.column_store import ColumnStore, merge_stores, open_complete, open_or_create, read_key

# Entry of a store's key -> the reason why parts that differ in it cannot be merged.
_FAULTS = {
    'models': 'is of another model',
    'inputs': 'has another image size or normalization (INPUT)',
    'views': 'has other views (TEST.FLIP, TEST.CROPS, TEST.SCALES)',
    'weights': 'has other ensemble weights',
    'average': 'has another TEST.AVERAGE',
    'score': 'has another TEST.REJECT_UNKNOWN or TEST.UNKNOWN_SCORE',
    'split': 'is of another list of images',
    'files': 'is of images that have changed since',
}


def _merge_key(key: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a key that are equal in all parts and in the command that merges them.

    That command may run on another device than the parts, with another batch size.
    """
    inputs = [{name: value for name, value in one.items() if name != 'device'} for one in key['inputs']]
    comparable = {name: key.get(name) for name in _FAULTS} | {'inputs': inputs}
    return json.loads(json.dumps(comparable))  # as a store on the disk gives them back


def _fault(key: dict[str, Any], expected: dict[str, Any], before: Sequence[dict[str, Any]]) -> str:
    """Return the reason why a part does not follow the parts before it; '' if it does."""
    comparable = _merge_key(key)
    for name, fault in _FAULTS.items():
        if comparable[name] != expected[name]:
            return fault
    devices = [[one['device'] for one in part['inputs']] for part in (key, *before[:1])]
    if any(part['batch_size'] != key['batch_size'] for part in before[:1]):
        return 'has another batch size than part 1 (TEST.BATCH_SIZE)'
    if devices[0] != devices[-1]:
        return f'was predicted on another device than part 1 ({devices[0][0]}; {devices[-1][0]})'
    return '' if key['rows'][0] == (before[-1]['rows'][1] if before else 0) else 'has other rows'


def _store_fault(store: ColumnStore, columns: Columns) -> str:
    shapes = {name: column.shape[1:] for name, column in store.columns.items()}
    if shapes != {name: shape for name, (_, shape) in columns.items()}:
        return 'has other columns (TEST.TOP_K, TEST.EMBEDDINGS)'
    return '' if store.is_complete else 'is not complete'


def partial_store(stem: Path, name: str = '') -> Path:
    """Return the folder of an unfinished prediction."""
    return stem.with_name(f'{stem.name}{"." if name else ""}{name}.partial')


def merge_parts(stem: Path, key: Mapping[str, Any], columns: Columns, num_images: int, num_parts: int) -> ColumnStore:
    """Merge the stores of all parts into the one that a single process writes.

    Once that one is complete, the parts are not needed: a merge that is killed while it removes them can be repeated.

    Args:
        stem: path of the predictions without suffix.
        key: all that the predictions depend on.

    Raises:
        UserError: a part is missing, unfinished, or of other images, another model or other options.
    """
    expected = _merge_key(key)
    keys = (read_key(partial_store(stem)) or {}).get('merged', [])
    if len(keys) == num_parts and not any(_fault(one, expected, keys[:index]) for index, one in enumerate(keys)):
        merged = open_complete(partial_store(stem), num_images, columns, {'merged': keys})
        if merged is not None:
            return merged
    stores: list[ColumnStore] = []
    keys = []
    for number in range(1, num_parts + 1):
        part = Part(number, num_parts)
        folder = partial_store(stem, str(part))
        of_part = read_key(folder)
        fault = 'is missing' if of_part is None else _fault(of_part, expected, keys)
        if not fault:
            try:
                stores.append(ColumnStore(folder))
                fault = _store_fault(stores[-1], columns)
            except StoreDamaged as error:
                fault = f'is damaged: {error}'
        if fault or of_part is None:
            raise UserError(
                f'TEST.PART merge/{num_parts}: part {number} {fault} ({folder}); predict it first with the other '
                f'options of this command: --TEST_PART {number}/{num_parts}'
            )
        keys.append(of_part)
    store = open_or_create(partial_store(stem), num_images, columns, {'merged': keys})
    if not store.is_complete:
        merge_stores(store, stores)
    return store
