"""The annotation cache: valid, updated, grown, damaged, in another folder, shared; json is the oracle."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lib.dataset import annotation_cache, annotations
from lib.dataset.annotation_cache import cache_paths, load
from lib.dataset.annotations import read_annotations
from lib.dataset.index import ClassIndex
from lib.errors import UserError
from lib.runtime.log import LOGGER

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def always_cached(monkeypatch, tmp_path):
    """Cache small files too, and use a cache folder of the test."""
    monkeypatch.setattr(annotations, 'CACHED_FROM_BYTES', 0)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'user cache'))


@pytest.fixture
def log_lines(monkeypatch):
    """Collect the log lines."""
    lines = []
    monkeypatch.setattr(LOGGER, 'info', lambda text, *args: lines.append(text % args))
    return lines


@pytest.fixture
def parsings(monkeypatch):
    """Collect the prefix of each call of the parser."""
    calls, real = [], annotations.parse_in_blocks

    def recorded(file, prefix=None):
        calls.append(prefix)
        return real(file, prefix, block_bytes=1 << 12)

    monkeypatch.setattr(annotations, 'parse_in_blocks', recorded)
    return calls


def entries(num, seed=0, num_classes=7):
    labels = np.random.default_rng(seed).integers(num_classes, size=num).tolist()
    return [{'category_id': label, 'fpath': f'träin/{row}_{seed}.jpg'} for row, label in enumerate(labels)]


def write(path, annotations, num_classes=7):
    body = ',\n'.join(json.dumps(entry, ensure_ascii=False) for entry in annotations)
    path.write_text(f'{{"annotations": [\n{body}\n],\n"num_classes": {num_classes}}}\n', encoding='utf-8')


def check(found, path):
    """Compare with json and plain loops."""
    tree = json.loads(path.read_text(encoding='utf-8'))
    weights = [entry.get('weight', 1) for entry in tree['annotations']]
    assert (np.ones(len(found)) if found.weights is None else found.weights).tolist() == weights
    labels = [entry['category_id'] for entry in tree['annotations']]
    assert found.paths.to_pylist() == [entry['fpath'] for entry in tree['annotations']]
    assert found.labels.tolist() == labels
    assert found.num_classes == tree['num_classes']
    assert found.by_class.tolist() == sorted(range(len(labels)), key=lambda row: (labels[row], row))


@pytest.fixture
def path(tmp_path):
    (tmp_path / 'data').mkdir()
    path = tmp_path / 'data' / 'converted_train.json'
    write(path, entries(1000))
    return path


def cache_of(path):
    return path.with_name(f'.{path.name}.arrow')


def test_parsed_once(path, parsings, log_lines):
    check(read_annotations(path), path)
    assert cache_of(path).is_file()
    check(read_annotations(path), path)
    assert (parsings, log_lines) == ([None], [])
    assert sorted(file.name for file in path.parent.iterdir()) == ['.converted_train.json.arrow', path.name]
    assert not (path.parent.parent / 'user cache').exists()


def test_other_programs_read_the_arrow_file(path):
    read_annotations(path)
    table = pa.ipc.open_file(str(cache_of(path))).read_all()
    tree = json.loads(path.read_text())
    assert table.column('path').to_pylist() == [entry['fpath'] for entry in tree['annotations']]
    assert table.column('label').to_pylist() == [entry['category_id'] for entry in tree['annotations']]


def test_small_files_are_not_cached(path, monkeypatch):
    monkeypatch.undo()
    check(read_annotations(path), path)
    assert not cache_of(path).exists()


def test_warnings_are_cached(path):
    write(path, [*entries(5), *entries(5)], num_classes=9)
    first, again = read_annotations(path).warnings, read_annotations(path).warnings
    assert first == again
    assert '5 entries repeat an earlier fpath: entry 5 (träin/0_0.jpg)' in first[0]
    assert 'classes have no image' in first[1]
    assert all(warning.startswith(f'{path}: ') for warning in first)


def test_a_touched_file_is_hashed_not_parsed(path, parsings, log_lines):
    read_annotations(path)
    os.utime(path, ns=(1, 1))
    before = cache_of(path).stat().st_ino
    check(read_annotations(path), path)
    assert cache_of(path).stat().st_ino != before  # the stamp was updated
    assert load(cache_of(path)).source.stamp.mtime_ns == 1
    assert (len(parsings), log_lines) == (1, [])


def test_a_copied_folder_is_hashed_not_parsed(path, parsings, tmp_path):
    read_annotations(path)
    copy = tmp_path / 'copy'
    copy.mkdir()
    for file in (path, cache_of(path)):
        (copy / file.name).write_bytes(file.read_bytes())
    check(read_annotations(copy / path.name), path)
    assert len(parsings) == 1


def test_different_content_of_the_same_size(path, parsings, log_lines):
    read_annotations(path)
    changed = entries(1000)
    changed[5]['category_id'] = (changed[5]['category_id'] + 1) % 7
    status = path.stat()
    write(path, changed)
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(5, 5))
    check(read_annotations(path), path)
    assert len(parsings) == 2
    assert 'has changed' in log_lines[0]
    assert len(log_lines) == 1


def test_a_replaced_file_of_same_size_and_time(path):
    """The inode alone differs."""
    read_annotations(path)
    status = path.stat()
    changed = entries(1000)
    changed[5]['fpath'] = changed[5]['fpath'].replace('5', '6')
    other = path.with_name('other')
    write(other, changed)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    check(read_annotations(path), path)


def test_only_appended_entries_are_parsed(path, parsings):
    read_annotations(path)
    grown = [*entries(1000), *entries(300, seed=1, num_classes=9)]
    write(path, grown, num_classes=9)
    check(read_annotations(path), path)
    assert parsings[0] is None
    assert 900 < len(parsings[1].labels) < 1000
    check(read_annotations(path), path)  # the result was cached
    assert len(parsings) == 2
    write(path, [*grown, *entries(10, seed=2)], num_classes=9)
    check(read_annotations(path), path)
    assert len(parsings[2].labels) > 1000


def test_weights_are_cached_and_may_be_appended(path, parsings, log_lines):
    pseudo = [{**entry, 'weight': number / 512} for number, entry in enumerate(entries(300, seed=1), 1)]
    write(path, [*entries(1000), *pseudo])
    check(read_annotations(path), path)
    again = read_annotations(path)
    check(again, path)
    assert (parsings, log_lines) == ([None], [])
    write(path, [*entries(1000), *pseudo, *entries(300, seed=2)])
    check(read_annotations(path), path)
    assert len(parsings[1].weights) == len(parsings[1].labels)


@pytest.mark.parametrize('position', [3, 999])
@pytest.mark.parametrize('weight', [0, -1, 1.5, 350, True, None, '0.5', [], float('nan'), 1e-60, 10**400])
def test_weights_out_of_range(path, weight, position):
    annotations = entries(1000)
    annotations[position]['weight'] = weight
    write(path, annotations)
    with pytest.raises(UserError, match=f'entry {position}: weight is .*, but must be above 0 and at most 1'):
        read_annotations(path)


def test_appended_entries_that_repeat_old_ones(path, parsings):
    read_annotations(path)
    write(path, [*entries(1000), *entries(30, seed=1), *entries(3)])
    (warning,) = read_annotations(path).warnings
    assert '3 entries repeat an earlier fpath: entry 1030 (träin/0_0.jpg), entry 1031' in warning


def test_appended_faults_are_named_by_their_position(path, parsings):
    read_annotations(path)
    write(path, [*entries(1000), *entries(30, seed=1), {'category_id': 7, 'fpath': 'x'}])
    with pytest.raises(UserError, match='entry 1030: category_id is 7, but must be from 0 to 6'):
        read_annotations(path)


def test_a_grown_file_with_a_different_prefix(path, parsings):
    read_annotations(path)
    write(path, [*entries(1000, seed=3), *entries(300, seed=1)])
    check(read_annotations(path), path)


def test_a_file_that_shrank(path, parsings):
    read_annotations(path)
    write(path, entries(400))
    check(read_annotations(path), path)


def truncated(data):
    return data[: len(data) // 2]


def with_text(data, old, new):
    assert old in data
    return data.replace(old, new)


def rewritten(edit):
    """Return a function that edits the columns or metadata of a cache, which remains a valid Arrow file."""

    def corrupt(data):
        reader = pa.ipc.open_file(pa.py_buffer(data))
        columns = {name: reader.get_batch(0).column(name) for name in reader.schema.names}
        metadata = dict(reader.schema.metadata)
        edit(columns, metadata)
        batch = pa.record_batch(columns).replace_schema_metadata(metadata)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return sink.getvalue().to_pybytes()

    return corrupt


def set_value(column, row, value):
    def edit(columns, metadata):
        values = columns[column].to_pylist()
        values[row] = value
        columns[column] = pa.array(values, columns[column].type)

    return edit


CORRUPTIONS = {
    'truncated': truncated,
    'empty': lambda data: b'',
    'garbage': lambda data: np.random.default_rng(0).bytes(len(data)),
    'zeros': lambda data: bytes(len(data)),
    'zeros at the end': lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    'one byte short': lambda data: data[:-1],
    'another version': rewritten(
        lambda columns, metadata: metadata.update(
            annotations=with_text(metadata.pop(b'annotations'), b'"version":5', b'"version":4')
        )
    ),
    'no metadata': rewritten(lambda columns, metadata: metadata.clear()),
    'metadata of another form': rewritten(lambda columns, metadata: metadata.update({b'annotations': b'{"a": 1}'})),
    'another arrow file': rewritten(lambda columns, metadata: (columns.clear(), columns.update(a=pa.array([1])))),
    'label out of range': rewritten(set_value('label', 3, 7)),
    'negative label': rewritten(set_value('label', 3, -1)),
    'label missing': rewritten(set_value('label', 3, None)),
    'row out of range': rewritten(set_value('by_class', 3, 1000)),
    'starts of fewer classes': rewritten(lambda columns, metadata: metadata.update({b'starts': bytes(8)})),
    'starts that end elsewhere': rewritten(lambda columns, metadata: metadata.update({b'starts': bytes(64)})),
    'a changed character of a path': lambda data: with_text(data, b'/999_0.jpg', b'/998_0.jpg'),
    'a changed label': rewritten(
        lambda columns, metadata: columns.update(label=pa.array(np.roll(columns['label'], 1)))
    ),
    'labels of another type': rewritten(lambda columns, metadata: columns.update(label=columns['label'].cast('int64'))),
}


@pytest.mark.parametrize('corrupt', CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
def test_a_damaged_cache_is_logged_and_replaced(path, corrupt, parsings, log_lines):
    read_annotations(path)
    cache_of(path).write_bytes(corrupt(cache_of(path).read_bytes()))
    check(read_annotations(path), path)
    assert len(parsings) == 2
    assert len(log_lines) == 1
    assert f'{cache_of(path)} is damaged' in log_lines[0]
    check(read_annotations(path), path)
    assert (len(parsings), len(log_lines)) == (2, 1)


@pytest.mark.parametrize('value', [2**30, -5, 0])
def test_offsets_out_of_range(path, value):
    read_annotations(path)
    data = bytearray(cache_of(path).read_bytes())
    offsets = pa.ipc.open_file(pa.py_buffer(bytes(data))).get_batch(0).column('path').buffers()[1].to_pybytes()
    position = data.index(offsets[: 4 * 1001]) + 4 * 100
    data[position : position + 4] = np.int32(value).tobytes()
    cache_of(path).write_bytes(data)
    with pytest.raises(annotation_cache.CacheDamaged, match='numbers cannot be right'):
        load(cache_of(path))
    check(read_annotations(path), path)


def test_a_compressed_cache(path, log_lines):
    read_annotations(path)
    batch = pa.ipc.open_file(str(cache_of(path))).get_batch(0)
    options = pa.ipc.IpcWriteOptions(compression='lz4')
    with pa.ipc.new_file(str(cache_of(path)) + '2', batch.schema, options=options) as writer:
        writer.write_batch(batch)
    os.replace(str(cache_of(path)) + '2', cache_of(path))
    check(read_annotations(path), path)
    assert 'compressed' in log_lines[0]


def test_a_folder_in_which_the_cache_cannot_be_written(path, parsings, tmp_path):
    cache_of(path).mkdir()  # blocks root too, who ignores permissions
    (cache_of(path) / 'x').touch()
    for _ in range(2):
        check(read_annotations(path), path)
    user_folder = tmp_path / 'user cache' / 'product-recognition'
    assert len(list(user_folder.iterdir())) == 1
    assert user_folder.stat().st_mode & 0o777 == 0o700
    assert cache_paths(path)[1].parent == user_folder
    assert len(parsings) == 1


@pytest.mark.process
def test_no_folder_is_writable(path, parsings, log_lines, monkeypatch, tmp_path):
    cache_of(path).mkdir()
    (tmp_path / 'user cache').touch()
    found = read_annotations(path)
    check(found, path)
    assert 'no folder for its cache is writable' in log_lines[-1]
    check_in_a_worker(found, path)


def test_a_cache_folder_open_to_others_is_not_used(path, tmp_path):
    cache_of(path).mkdir()
    user_folder = tmp_path / 'user cache' / 'product-recognition'
    user_folder.mkdir(parents=True)
    user_folder.chmod(0o777)
    check(read_annotations(path), path)
    assert list(user_folder.iterdir()) == []


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_a_full_disk_is_no_error(path, monkeypatch):
    def full(path, columns):
        with open('/dev/full', 'wb', buffering=0) as file:
            file.write(b'x')

    monkeypatch.setattr(annotation_cache, '_write', full)
    check(read_annotations(path), path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_faulty_files_leave_no_cache(path):
    write(path, [{'category_id': 9, 'fpath': 'x'}])
    with pytest.raises(UserError, match='entry 0: category_id is 9'):
        read_annotations(path)
    assert not cache_of(path).exists()


def test_a_link_to_the_file(path, tmp_path, parsings):
    link = tmp_path / 'link.json'
    link.symlink_to(path)
    check(read_annotations(link), path)
    check(read_annotations(link), path)
    assert len(parsings) == 1


def read_back(column, labels, index, connection):
    connection.send((column.to_pylist(), labels.tolist(), [index.rows_of(label).tolist() for label in range(7)]))


def check_in_a_worker(found, path):
    """Send the columns and the index to a new process."""
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    index = ClassIndex(found.labels, found.num_classes, by_class=found.by_class)
    process = context.Process(target=read_back, args=(found.paths, found.labels, index, theirs))
    process.start()
    paths, labels, rows = ours.recv()
    process.join()
    tree = json.loads(path.read_text(encoding='utf-8'))
    assert paths == [entry['fpath'] for entry in tree['annotations']]
    assert labels == [entry['category_id'] for entry in tree['annotations']]
    assert rows == [[row for row, label in enumerate(labels) if label == expected] for expected in range(7)]


@pytest.mark.process
def test_workers_map_the_columns_even_if_the_cache_is_deleted(path):
    read_annotations(path)
    found = read_annotations(path)
    cache_of(path).unlink()
    check_in_a_worker(found, path)


def test_pickled_columns_refer_to_the_file(path):
    write(path, entries(20_000))
    read_annotations(path)
    found = read_annotations(path)
    data = pickle.dumps((found, ClassIndex(found.labels, found.num_classes, by_class=found.by_class)))
    assert len(data) < 3000
    again, index = pickle.loads(data)
    check(again, path)
    assert index.rows_of(3).tolist() == [row for row, label in enumerate(found.labels.tolist()) if label == 3]


def test_a_cache_that_is_replaced_after_pickling_is_an_error(path):
    read_annotations(path)
    data = pickle.dumps(read_annotations(path))
    os.utime(path, ns=(1, 1))
    read_annotations(path)
    with pytest.raises(UserError, match='was replaced while it was in use'):
        pickle.loads(data)


@pytest.mark.process
def test_several_processes_at_once(path, tmp_path):
    write(path, entries(30_000))
    program = (
        f'import sys; sys.path.insert(0, {str(ROOT)!r})\n'
        'from lib.dataset import annotations\n'
        'annotations.CACHED_FROM_BYTES = 0\n'
        'found = annotations.read_annotations(sys.argv[1])\n'
        'print(len(found), int(found.labels.sum()), found.paths[29_999], int(found.by_class[:100].sum()))'
    )
    command = [sys.executable, '-c', program, str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {process.communicate()[0] for process in processes}
    assert all(process.returncode == 0 for process in processes)
    assert len(outputs) == 1
    assert outputs.pop().startswith('30000 ')
    check(read_annotations(path), path)
    assert sorted(file.name for file in path.parent.iterdir()) == ['.converted_train.json.arrow', path.name]
