"""ColumnStore: after a kill, all rows that are marked as done are valid."""

import json

import numpy as np

from lib.runtime.column_store import ColumnStore, open_or_create

COLUMNS = {'features': (np.float32, (3,)), 'best': (np.int64, ())}
KEY = {'checkpoint': 'abc', 'sizes': (112, 128)}


def values(rows: slice) -> dict[str, np.ndarray]:
    numbers = np.arange(rows.start, rows.stop)
    return {'features': numbers[:, None] * np.ones((1, 3), np.float32), 'best': numbers * 10}


def test_rows_are_done_after_a_flush(tmp_path):
    store = open_or_create(tmp_path / 'store', 10, COLUMNS, KEY)
    assert not store.done.any()
    store.write(slice(2, 5), values(slice(2, 5)), [(3, 'no image')])
    assert not ColumnStore(tmp_path / 'store').done.any(), 'values are written before the marks'
    store.flush()
    again = open_or_create(tmp_path / 'store', 10, COLUMNS, KEY)
    assert again.done.tolist() == [False, False, True, True, True, *[False] * 5]
    np.testing.assert_array_equal(again.columns['features'][2:5], values(slice(2, 5))['features'])
    assert again.columns['best'][2:5].tolist() == [20, 30, 40]
    assert again.errors() == [(3, 'no image')]
    assert not again.is_complete


def test_two_writers(tmp_path):
    open_or_create(tmp_path / 'store', 6, COLUMNS, KEY)
    writers = [ColumnStore(tmp_path / 'store', writer=number) for number in range(2)]
    for number, rows in ((1, slice(3, 6)), (0, slice(0, 3))):
        writers[number].write(rows, values(rows), [(rows.start, f'writer {number}')])
        writers[number].flush()
    store = ColumnStore(tmp_path / 'store')
    assert store.is_complete
    assert store.columns['best'].tolist() == [0, 10, 20, 30, 40, 50]
    assert store.errors() == [(0, 'writer 0'), (3, 'writer 1')]


def test_another_size_column_or_key_starts_empty(tmp_path):
    store = open_or_create(tmp_path / 'store', 4, COLUMNS, KEY)
    store.write(slice(0, 4), values(slice(0, 4)))
    store.flush()
    assert open_or_create(tmp_path / 'store', 4, COLUMNS, KEY).is_complete
    for changed in ((5, COLUMNS, KEY), (4, {**COLUMNS, 'best': (np.int32, ())}, KEY), (4, COLUMNS, {'other': 1})):
        assert not open_or_create(tmp_path / 'store', *changed).done.any()


def test_truncated_lines_are_ignored(tmp_path):
    store = open_or_create(tmp_path / 'store', 4, COLUMNS, KEY)
    store.write(slice(0, 2), values(slice(0, 2)), [(0, 'first'), (1, 'second')])
    store.flush()
    with open(tmp_path / 'store' / 'notes0.jsonl', 'a') as file:
        file.write(json.dumps([0, 'again']) + '\n[2, "cut sh')
    store = ColumnStore(tmp_path / 'store')
    assert store.errors() == [(0, 'again'), (1, 'second')]
    store.write(slice(2, 4), values(slice(2, 4)), [(3, 'third')])
    store.flush()
    assert store.errors() == [(0, 'again'), (1, 'second'), (3, 'third')]
    (tmp_path / 'store' / 'about.json').write_text('{"num_rows')
    assert not open_or_create(tmp_path / 'store', 4, COLUMNS, KEY).done.any(), 'unknown key'
