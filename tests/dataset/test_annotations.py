"""Annotation files: their columns, and error lines that name faulty entries."""

import json
import re
import unicodedata

import numpy as np
import pytest

from lib.dataset import annotations
from lib.dataset.annotations import read_annotations, read_classes, read_test_images
from lib.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(tree, name='x.json'):
        path = tmp_path / name
        path.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding='utf-8')
        return path

    return write


def entries(*labels, **more):
    return [{'category_id': label, 'fpath': f'{row}.jpg', **more} for row, label in enumerate(labels)]


def error_of(read, *args):
    with pytest.raises(UserError) as caught:
        read(*args)
    message = str(caught.value)
    assert '\n' not in message
    assert message.startswith(str(args[0]))
    return message


def test_columns(write):
    path = write({'annotations': entries(2, 0, 2), 'num_classes': 3, 'info': {'any': 'thing'}})
    found = read_annotations(path)
    assert found.paths.to_pylist() == ['0.jpg', '1.jpg', '2.jpg']
    assert found.labels.dtype == np.int32
    assert found.labels.tolist() == [2, 0, 2]
    assert (found.num_classes, len(found), found.labeled, found.source) == (3, 3, True, str(path))


def test_other_fields_are_ignored(write):
    path = write({'annotations': entries(0, 1, im_height=3, note=None), 'num_classes': 2})
    assert read_annotations(path).warnings == []


def test_paths_are_unchanged(write):
    names = ['a b/ä\u2028.jpg', 'C:\\x.jpg', '日本/1.jpg']
    tree = {'annotations': [{'category_id': 0, 'fpath': name} for name in names], 'num_classes': 1}
    assert read_annotations(write(tree)).paths.to_pylist() == names


def test_duplicates_and_empty_classes_are_warnings(write):
    annotations = [{'category_id': 0, 'fpath': 'a'}, {'category_id': 4, 'fpath': 'b'}, {'category_id': 4, 'fpath': 'a'}]
    found = read_annotations(write({'annotations': annotations, 'num_classes': 6}))
    duplicates, empty = found.warnings
    assert '1 entry repeats an earlier fpath: entry 2 (a)' in duplicates
    assert '4 of 6 classes have no image: 1, 2, 3, 5' in empty
    assert len(found) == 3


def test_empty_classes_are_named(write):
    path = write({'annotations': [{'category_id': 1, 'fpath': 'a'}], 'num_classes': 3})
    classes = path.with_name('classes.json')
    classes.write_text('{"names": ["oat drink", "tea", "7 up"]}')
    assert read_annotations(path).warnings == [f'{path}: 2 of 3 classes have no image: oat drink, 7 up']
    classes.write_text('{"names": ["of another set"]}')
    assert read_annotations(path).warnings == [f'{path}: 2 of 3 classes have no image: 0, 2']


def test_warnings_name_the_first_ten(write):
    annotations = [{'category_id': 0, 'fpath': 'a'}] * 30
    duplicates, empty = read_annotations(write({'annotations': annotations, 'num_classes': 30})).warnings
    assert '29 entries repeat' in duplicates
    assert duplicates.count('entry ') == 10
    assert duplicates.endswith(', ...')
    assert empty.endswith('10, ...')


@pytest.mark.parametrize(
    ('tree', 'words'),
    [
        ('', ['not valid JSON']),
        ('{"annotations": [', ['not valid JSON']),
        ('nonsense', ['not valid JSON']),
        ('[' * 100_000, ['not valid JSON']),
        ([], ['must be {"annotations"']),
        ({'num_classes': 1}, ['must be {"annotations"']),
        ({'annotations': {}, 'num_classes': 1}, ['must be {"annotations"']),
        ({'annotations': entries(0)}, ['has no num_classes, but must be {"annotations"']),
        ({'annotations': entries(0), 'num_classes': '1'}, ["num_classes is '1'"]),
        ({'annotations': entries(0), 'num_classes': 1.5}, ['num_classes is 1.5']),
        ({'annotations': entries(0), 'num_classes': True}, ['num_classes is True']),
        ({'annotations': entries(0), 'num_classes': 0}, ['num_classes is 0, but must be a whole number, at least 1']),
        ({'annotations': entries(0), 'num_classes': 10**15}, ['but must be at most 50000000']),
        ({'annotations': entries(0), 'num_classes': 10**30}, ['but must be at most 50000000']),
        ({'annotations': [], 'num_classes': 3}, ['lists no images']),
        ({'annotations': entries(0, 3), 'num_classes': 3}, ['entry 1: category_id is 3, but must be from 0 to 2']),
        ({'annotations': entries(0, -1), 'num_classes': 3}, ['entry 1: category_id is -1']),
        ({'annotations': entries(0, 10**30), 'num_classes': 3}, ['entry 1: category_id is 1000']),
        ({'annotations': entries(0, 2**31), 'num_classes': 3}, ['entry 1: category_id is 2147483648']),
        ({'annotations': entries(0, '1'), 'num_classes': 3}, ["entry 1: category_id is '1', not a whole number"]),
        ({'annotations': entries('tea'), 'num_classes': 3}, ['; for text labels: python tools/convert.py --help']),
        ({'annotations': entries(0, 1.5), 'num_classes': 3}, ['entry 1: category_id is 1.5, not a whole number']),
        ({'annotations': entries(0, True), 'num_classes': 3}, ['entry 1: category_id is True']),
        ({'annotations': entries(0, None), 'num_classes': 3}, ['entry 1: category_id is None']),
        ({'annotations': [{'fpath': 'a'}], 'num_classes': 3}, ['entry 0: category_id is None']),
        ({'annotations': [{'category_id': 0}], 'num_classes': 3}, ['entry 0 has no fpath']),
        ({'annotations': [{'category_id': 0, 'fpath': 3}], 'num_classes': 3}, ['entry 0: fpath is 3, not a path']),
        ({'annotations': [{'category_id': 0, 'fpath': ''}], 'num_classes': 3}, ["entry 0: fpath is '', not a path"]),
        ({'annotations': [*entries(0), 'x'], 'num_classes': 3}, ["entry 1 is 'x', not an object"]),
        ({'annotations': [*entries(0), None], 'num_classes': 3}, ['entry 1 is None, not an object']),
    ],
    ids=range(30),
)
def test_faults(write, tree, words):
    message = error_of(read_annotations, write(tree))
    assert all(word in message for word in words), message


def test_a_csv_file_as_annotations_names_the_converter(tmp_path):
    path = tmp_path / 'shop.CSV'
    path.write_text('file,label\na.jpg,tea\n')
    assert 'shop.CSV:1: not valid JSON' in (message := error_of(read_annotations, path))
    assert message.endswith('python tools/convert.py --help')


def test_the_first_ten_faults_by_position_then_their_number(write):
    labels = [0] * 5 + [9] * 13 + [0]
    message = error_of(read_annotations, write({'annotations': entries(*labels), 'num_classes': 3}))
    assert [f'entry {row}:' in message for row in range(19)] == [5 <= row < 15 for row in range(19)]
    assert 'and 3 more (13 faulty in all)' in message


def test_long_values_are_shortened(write):
    message = error_of(
        read_annotations, write({'annotations': [{'category_id': 'x' * 999, 'fpath': 'a'}], 'num_classes': 1})
    )
    assert len(message) < 300


def test_files_that_cannot_be_read(tmp_path):
    assert 'no such file' in error_of(read_annotations, tmp_path / 'none.json')
    assert 'cannot be read' in error_of(read_annotations, tmp_path)
    (tmp_path / 'latin.json').write_bytes(b'{"annotations": [{"category_id": 0, "fpath": "\xe9"}], "num_classes": 1}')
    error_of(read_annotations, tmp_path / 'latin.json')
    (tmp_path / 'binary.json').write_bytes(bytes(range(256)))
    error_of(read_annotations, tmp_path / 'binary.json')
    error_of(read_test_images, tmp_path / 'latin.json', 1)


def test_a_test_split_of_image_ids(write):
    found = read_test_images(write({'images': [{'image_id': 'x.jpg'}, {'image_id': 'y.jpg'}]}), 7)
    assert found.paths.to_pylist() == ['x.jpg', 'y.jpg']
    assert (found.labels.tolist(), found.num_classes, found.labeled) == ([-1, -1], 7, False)


def test_a_test_split_in_the_annotations_form(write):
    found = read_test_images(write({'annotations': entries(1, 0)}), 2)
    assert (found.labels.tolist(), found.labeled) == ([1, 0], True)
    found = read_test_images(write({'annotations': [{'fpath': 'a'}, {'fpath': 'b'}], 'num_classes': 9}), 2)
    assert (found.labels.tolist(), found.labeled, found.num_classes) == ([-1, -1], False, 2)


@pytest.mark.parametrize(
    ('tree', 'words'),
    [
        ({'images': []}, ['lists no images']),
        ({'images': [{'id': 3}]}, ['entry 0 has no image_id']),
        ({'images': ['x.jpg']}, ["entry 0 is 'x.jpg', not an object"]),
        ({'images': 'x'}, ['must be {"images"']),
        ([], ['must be {"images"']),
        ('{', ['not valid JSON']),
        ({'annotations': entries(0, 5)}, ['entry 1: category_id is 5, but must be from 0 to 2']),
        ({'annotations': [*entries(0), {'fpath': 'a'}]}, ['entry 1: category_id is None']),  # labels: all or none
    ],
    ids=range(8),
)
def test_faults_of_a_test_split(write, tree, words):
    message = error_of(read_test_images, write(tree), 3)
    assert all(word in message for word in words), message


def test_classes(write, tmp_path):
    assert read_classes(tmp_path / 'classes.json', 2) is None
    found = read_classes(write({'names': ['a', 'ü'], 'parents': [['Fruit', 'Apple'], []]}), 2)
    assert (found.names, found.parents) == (['a', 'ü'], [['Fruit', 'Apple'], []])
    assert read_classes(write({'names': ['a', 'b']}), 2).parents == []
    assert read_classes(write({'names': ['a', 'b'], 'parents': None}), 2).parents == []


@pytest.mark.parametrize(
    ('tree', 'words'),
    [
        ([], ['must be {"names"']),
        ({'names': [1, 2]}, ['one text per class']),
        ({'names': 'ab'}, ['one text per class']),
        ({'names': ['a']}, ['has 1 names', 'num_classes 2']),
        ({'names': ['a', 'b'], 'parents': [[]]}, ['has 1 parents for 2 names']),
        ({'names': ['a', 'b'], 'parents': ['x', 'y']}, ['parents']),
        ({'names': ['a', 'b'], 'parents': [[1], []]}, ['parents']),
        ({'names': ['a', 'b'], 'parents': {'a': 1, 'b': 2}}, ['parents']),
        ('{', ['not valid JSON']),
    ],
    ids=range(9),
)
def test_faults_of_classes(write, tree, words):
    message = error_of(read_classes, write(tree), 2)
    assert all(word in message for word in words), message


LONG = '1234567890' * 500  # more digits than Python converts
# JSON of other programs, from a template with the entries and num_classes.
OTHER_JSON = {
    'byte order mark': lambda text: text.encode('utf-8-sig'),
    'byte order mark, line breaks of Windows': lambda text: text.replace('\n', '\r\n').encode('utf-8-sig'),
    'UTF-16': lambda text: text.encode('utf-16'),
    'UTF-16 without mark': lambda text: text.encode('utf-16-le'),
    'NaN': lambda text: text.replace('"x": 0', '"bbox": [NaN, -Infinity], "x": Infinity').encode(),
    'NaN, byte order mark': lambda text: text.replace('"x": 0', '"x": NaN').encode('utf-8-sig'),
    'large numbers': lambda text: text.replace('"x": 0', f'"x": 1e999, "y": -{LONG}').encode(),
    'floats': lambda text: text.replace('"category_id": 2', '"category_id": 2.0').encode(),
    'all floats': lambda text: text.replace('"num_classes": 3', '"num_classes": 3.0').encode(),
    'undecodable text': lambda text: text.replace('"x": 0', '"x": "\\udce9"').encode(),
}


@pytest.mark.parametrize('form', OTHER_JSON.values(), ids=OTHER_JSON)
@pytest.mark.parametrize('first', [True, False])
@pytest.mark.parametrize('cached', [True, False])
def test_json_of_other_programs(tmp_path, monkeypatch, form, first, cached):
    monkeypatch.setattr(annotations, 'CACHED_FROM_BYTES', 0 if cached else 1 << 40)
    rows = [(row % 3, f'NaN 1e999/\u00e9 {row}.jpg') for row in range(50)]
    text = ',\n'.join(f'{{"category_id": {label}, "x": 0, "fpath": "{path}"}}' for label, path in rows)
    parts = ['"num_classes": 3', f'"annotations": [{text}]']
    path = tmp_path / 'a.json'
    path.write_bytes(form(f'{{{", ".join(parts if first else parts[::-1])}}}\n'))
    for _ in range(1 + cached):
        found = read_annotations(path)
        assert list(zip(found.labels.tolist(), found.paths.to_pylist(), strict=True)) == rows
        assert (found.num_classes, found.warnings) == (3, [])
    test = read_test_images(path, 3)
    assert list(zip(test.labels.tolist(), test.paths.to_pylist(), strict=True)) == rows


@pytest.mark.parametrize(
    ('label', 'words'),
    [
        (LONG, r'entry 1: category_id is 1234\d+\.\.\., not a whole number'),
        (f'-{LONG}', r'entry 1: category_id is -1234\d+\.\.\., not a whole number'),
        ('9' * 200, r'entry 1: category_id is 9+\.\.\., but must be from 0 to 1'),
        ('NaN', 'entry 1: category_id is nan, not a whole number'),
        ('1e999', 'entry 1: category_id is inf, not a whole number'),
        ('1.5', 'entry 1: category_id is 1.5, not a whole number'),
        ('-1.0', 'entry 1: category_id is -1, but must be from 0 to 1'),
        ('"1"', "entry 1: category_id is '1', not a whole number"),
    ],
)
def test_labels_that_are_no_labels(write, label, words):
    text = '{"annotations": [{"category_id": 0, "fpath": "a"}, {"category_id": %s, "fpath": "b"}], "num_classes": 2}'
    path = write(text % label)
    for message in (error_of(read_annotations, path), error_of(read_test_images, path, 2)):
        assert re.search(words, message)
        assert '(1 faulty in all)' in message
        assert len(message) < len(str(path)) + 120
    message = error_of(
        read_annotations, write(f'{{"annotations": [{{"category_id": 0, "fpath": "a"}}], "num_classes": {label}}}')
    )
    assert 'num_classes is ' in message
    assert len(message) < len(str(path)) + 120


def test_paths_that_are_no_text(write):
    text = '{"annotations": [{"category_id": 0, "fpath": "caf\\udce9.jpg"}], "num_classes": 1}'
    for read in (read_annotations, lambda path: read_test_images(path, 1)):
        assert "entry 0: fpath is 'caf\\udce9.jpg', not Unicode: rename the file" in error_of(read, write(text))
    path = write('{"names": ["caf\\udce9"]}', 'classes.json')
    assert 'must be {"names"' in error_of(read_classes, path, 1)


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        (
            b'{"annotations": [\n{"category_id": 0, "fpath": "caf\xe9.jpg"}], "num_classes": 1}',
            ':2: not valid JSON (byte',
        ),
        (b'path,label\na.jpg,0\n', ':1: not valid JSON'),
        (b'{"annotations": [\n\n{"category_id": 0, "fpath": "a"},\n], "num_classes": 1}', ':4: not valid JSON'),
        (b'', ':1: not valid JSON (Input data was truncated)'),
        (b'\xff\xfe{\0"', ':1: not valid JSON (not utf-16 text'),
        (b'PK\x03\x04\x14\0\x06\0', ':1: not valid JSON'),
    ],
)
def test_files_that_are_no_json_are_named_with_the_line(tmp_path, data, words):
    path = tmp_path / 'x.json'
    path.write_bytes(data)
    for read in (read_annotations, lambda path: read_test_images(path, 1), lambda path: read_classes(path, 1)):
        assert error_of(read, path).startswith(f'{path}{words}')


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
def test_class_names_are_composed(write, form):
    names = [unicodedata.normalize(form, name) for name in ('Caf\u00e9', 'a', '\u1e69')]
    path = write({'names': names, 'parents': [names[:1], [], names[2:]]})
    found = read_classes(path, 3)
    assert found.names == ['Caf\u00e9', 'a', '\u1e69']
    assert found.parents == [['Caf\u00e9'], [], ['\u1e69']]
