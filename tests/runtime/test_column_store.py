"""ColumnStore: after a kill or damage to any of its files, all rows that are marked as done are valid."""

import logging
import os
import random
import shutil

import numpy as np
import pytest

from lib.runtime.column_files import StoreDamaged
from lib.runtime.column_store import ColumnStore, merge_stores, open_complete, open_or_create, read_key
from lib.runtime.log import LOGGER

COLUMNS = {'features': (np.float32, (3,)), 'best': (np.int64, ())}
KEY = {'checkpoint': 'abc', 'sizes': (112, 128)}


@pytest.fixture
def log_lines(caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, 'propagate', True)
    caplog.set_level(logging.INFO, LOGGER.name)
    return lambda: [record.getMessage() for record in caplog.records]


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
    journal = tmp_path / 'store' / 'rows0.jsonl'
    with open(journal, 'ab') as file:
        file.write(journal.read_bytes().strip()[:-3])
    store = ColumnStore(tmp_path / 'store')
    assert store.errors() == [(0, 'first'), (1, 'second')]
    store.write(slice(0, 2), values(slice(0, 2)), [(0, 'again')])  # replaces the line of the same rows
    store.write(slice(2, 4), values(slice(2, 4)), [(3, 'third')])
    store.flush()
    assert store.errors() == [(0, 'again'), (3, 'third')]
    (tmp_path / 'store' / 'about.json').write_text('{"num_rows')
    assert not open_or_create(tmp_path / 'store', 4, COLUMNS, KEY).done.any(), 'unknown key'


def filled(folder, num_rows=40, step=8):
    """Return the values of a complete store."""
    store = open_or_create(folder, num_rows, COLUMNS, KEY)
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        store.write(rows, values(rows), [(start, 'bad')])
    store.flush()
    return {name: np.array(column) for name, column in store.columns.items()}


def test_damaged_rows_are_not_done(tmp_path, log_lines):
    expected = filled(tmp_path / 'store')
    for name, offset in (('features.npy', 128 + 20 * 12), ('best.npy', 128 + 3 * 8)):
        with open(tmp_path / 'store' / name, 'r+b') as file:
            file.seek(offset)
            file.write(b'\x01')
    assert open_complete(tmp_path / 'store', 40, COLUMNS, KEY) is None
    store = open_or_create(tmp_path / 'store', 40, COLUMNS, KEY)
    assert np.flatnonzero(~store.done).tolist() == [*range(8), *range(16, 24)]
    assert log_lines() == [f'{tmp_path / "store"}: 16 rows are damaged, computing again']
    for start in (0, 16):
        store.write(slice(start, start + 8), values(slice(start, start + 8)))
    store.flush()
    again = open_complete(tmp_path / 'store', 40, COLUMNS, KEY)
    assert {name: np.array_equal(again.columns[name], expected[name]) for name in expected} == {
        'features': True,
        'best': True,
    }
    assert again.errors() == [(8, 'bad'), (24, 'bad'), (32, 'bad')]
    assert len(log_lines()) == 1


DAMAGES = {
    'truncated': lambda path: os.truncate(path, path.stat().st_size - 5),
    'extended': lambda path: path.write_bytes(path.read_bytes() + b'\0'),
    'empty': lambda path: path.write_bytes(b''),
    'removed': lambda path: path.unlink(),
    'another header': lambda path: path.write_bytes(path.read_bytes().replace(b'False', b'True ')),
    'a folder': lambda path: (path.unlink(), path.mkdir()),
    'a pipe': lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('name', ['features.npy', 'about.json'])
def test_damaged_files_start_empty(tmp_path, log_lines, name, damage):
    filled(tmp_path / 'store')
    DAMAGES[damage](tmp_path / 'store' / name)
    if (name, damage) == ('about.json', 'another header'):  # which it does not have
        (tmp_path / 'store' / name).write_bytes(b'[1, 2]')
    with pytest.raises(StoreDamaged):
        ColumnStore(tmp_path / 'store')
    assert open_complete(tmp_path / 'store', 40, COLUMNS, KEY) is None
    store = open_or_create(tmp_path / 'store', 40, COLUMNS, KEY)
    assert not store.done.any()
    assert len(log_lines()) == 1, 'one line'
    assert (tmp_path / 'store' / 'features.npy').stat().st_size == 128 + 40 * 12


def test_descriptions_of_other_forms(tmp_path):
    filled(tmp_path / 'store')
    for content in (b'null', b'{}', b'{"crc32": 1}', b'[' * 100_000, b'{"num_rows": 1e999}', b'\xff', b'"text"'):
        (tmp_path / 'store' / 'about.json').write_bytes(content)
        assert read_key(tmp_path / 'store') is None
        assert open_complete(tmp_path / 'store', 40, COLUMNS, KEY) is None


def test_single_bits_of_a_store(tmp_path):
    """A flipped bit anywhere: each row is either not done, or has its value."""
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    expected, draws = filled(tmp_path / 'store', 16, 4), random.Random(seed)
    files = sorted(path.name for path in (tmp_path / 'store').iterdir())
    for name in files:
        for position in draws.sample(range(8 * (tmp_path / 'store' / name).stat().st_size), 12):
            copy = shutil.copytree(tmp_path / 'store', tmp_path / 'copy')
            data = bytearray((copy / name).read_bytes())
            data[position // 8] ^= 1 << position % 8
            (copy / name).write_bytes(data)
            store = open_or_create(copy, 16, COLUMNS, KEY)
            for column, array in expected.items():
                np.testing.assert_array_equal(store.columns[column][store.done], array[store.done])
            assert {row for row, _ in store.errors()} <= set(range(0, 16, 4))
            shutil.rmtree(copy)


def test_a_complete_store_is_not_written(tmp_path):
    expected = filled(tmp_path / 'store')
    for path in (tmp_path / 'store').iterdir():
        path.chmod(0o444)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'store').iterdir()}
    store = open_complete(tmp_path / 'store', 40, COLUMNS, KEY)
    assert not store.columns['features'].flags.writeable
    store.flush()
    np.testing.assert_array_equal(store.columns['features'], expected['features'])
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'store').iterdir()} == before


def test_merged_parts(tmp_path):
    expected = filled(tmp_path / 'whole', 48)
    parts = []
    for number in range(3):
        rows = slice(16 * number, 16 * number + 16)
        parts.append(open_or_create(tmp_path / str(number), 16, COLUMNS, KEY))
        parts[-1].write(slice(0, 16), values(rows), [(0, 'bad'), (8, 'bad')])
        parts[-1].flush()
    target = open_or_create(tmp_path / 'target', 48, COLUMNS, KEY)
    merge_stores(target, parts)
    merged = ColumnStore(tmp_path / 'target')
    assert merged.is_complete
    assert merged.errors() == ColumnStore(tmp_path / 'whole').errors()
    for name, array in expected.items():
        np.testing.assert_array_equal(merged.columns[name], array)


def test_no_rows(tmp_path):
    assert open_or_create(tmp_path / 'store', 0, COLUMNS, KEY).is_complete
    assert open_complete(tmp_path / 'store', 0, COLUMNS, KEY).columns['features'].shape == (0, 3)
