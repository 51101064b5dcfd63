import json
import random
from pathlib import Path

import numpy as np
import pytest

from lib.dataset.annotations import read_annotations, read_classes, read_test_images
from lib.errors import UserError
from lib.formats.converted import ConvertedDataset, ConvertedSplit, SplitBuilder, summary_lines, without_repeats
from lib.formats.sources import SourceErrors
from lib.formats.write import write_converted
from lib.runtime.json_file import read_json
from lib.runtime.text import natural_key


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def split(*pairs):
    return ConvertedSplit([path for path, _ in pairs], np.array([label for _, label in pairs], np.int32))


def test_source_errors_show_ten_and_count_all():
    errors = SourceErrors()
    errors.raise_if_any()
    for number in range(13):
        errors.add(f'x.txt:{number}', 'bad')
    with pytest.raises(UserError) as caught:
        errors.raise_if_any()
    assert str(caught.value).count('bad') == 10
    assert 'x.txt:9: bad; and 3 more (13 faulty in all)' in str(caught.value)


def test_written_files_are_read_back(tmp_path):
    touch(tmp_path, 'a b/ü.jpg', 'c.jpg')
    converted = ConvertedDataset(
        {'train': split(('a b/ü.jpg', 1), ('c.jpg', 0)), 'test': ConvertedSplit(['c.jpg', 'a b/ü.jpg'], None)},
        ['007', 'Bière "x"'],
        [['Root'], ['Root', 'Drinks']],
        tmp_path,
    )
    paths = write_converted(converted, tmp_path)
    assert sorted(path.name for path in tmp_path.glob('*.json')) == [
        'classes.json',
        'converted_test.json',
        'converted_train.json',
    ]
    train = read_annotations(paths['train'])
    assert (train.paths.to_pylist(), train.labels.tolist(), train.num_classes) == (
        ['a b/ü.jpg', 'c.jpg'],
        [1, 0],
        2,
    )
    test = read_test_images(paths['test'], 2)
    assert test.paths.to_pylist() == ['c.jpg', 'a b/ü.jpg']
    assert not test.labeled
    classes = read_classes(tmp_path / 'classes.json', 2)
    assert (classes.names, classes.parents) == (converted.names, converted.parents)
    assert not list(tmp_path.glob('.*'))


@pytest.mark.parametrize('num_images', [9_999, 10_000, 10_001, 20_000])
def test_chunks_join_to_valid_json(tmp_path, num_images):
    touch(tmp_path, 'x.jpg')
    labels = np.arange(num_images, dtype=np.int32) % 3
    write_converted(
        ConvertedDataset({'train': ConvertedSplit(['x.jpg'] * num_images, labels)}, ['a', 'b', 'c'], None, tmp_path),
        tmp_path,
    )
    tree = json.loads((tmp_path / 'converted_train.json').read_text())
    assert [entry['category_id'] for entry in tree['annotations']] == labels.tolist()
    assert tree['num_classes'] == 3


def test_paths_are_relative_to_the_output_folder(tmp_path):
    touch(tmp_path, 'photos/x.jpg', 'real/deep/keep')
    absolute = str(tmp_path / 'photos' / 'x.jpg')
    (tmp_path / 'out').symlink_to(tmp_path / 'real' / 'deep')  # `..` climbs from where the link leads to
    converted = ConvertedDataset({'train': split(('x.jpg', 0), (absolute, 0))}, ['a'], None, tmp_path / 'photos')
    paths = write_converted(converted, tmp_path / 'out')
    entries = json.loads(paths['train'].read_text())['annotations']
    assert entries[1]['fpath'] == absolute
    assert (tmp_path / 'out' / entries[0]['fpath']).exists()


def test_nothing_is_replaced_when_one_split_fails(tmp_path):
    touch(tmp_path, 'x.jpg')
    (tmp_path / 'converted_train.json').write_text('old')
    for faulty in (split(), split(('x.jpg', 0), ('bad\udcff.jpg', 0)), split(('absent.jpg', 0))):
        with pytest.raises(UserError, match='val'):
            write_converted(
                ConvertedDataset({'train': split(('x.jpg', 0)), 'val': faulty}, ['a'], None, tmp_path), tmp_path
            )
    assert (tmp_path / 'converted_train.json').read_text() == 'old'
    assert len(list(tmp_path.iterdir())) == 2


def test_stale_split_is_not_removed_but_a_warning(tmp_path):
    touch(tmp_path, 'x.jpg', 'converted_test.json')
    converted = ConvertedDataset({'train': split(('x.jpg', 0))}, ['a'], None, tmp_path)
    write_converted(converted, tmp_path)
    assert len(converted.warnings) == 1
    assert 'converted_test.json' in converted.warnings[0]


def test_builder_numbers_classes_in_natural_order():
    builder = SplitBuilder()
    for label in ['10', '2', '007', '7', 'b', '2']:
        builder.add('train', f'{label}.jpg', label)
    builder.add('val', 'v.jpg', '10')
    splits, names = builder.finish()
    assert names == ['2', '007', '7', '10', 'b']
    assert list(splits['train']) == [
        ('10.jpg', 3),
        ('2.jpg', 0),
        ('007.jpg', 1),
        ('7.jpg', 2),
        ('b.jpg', 4),
        ('2.jpg', 0),
    ]
    assert list(splits['val']) == [('v.jpg', 3)]


def test_builder_refuses_classes_without_training_images_and_missing_labels():
    builder = SplitBuilder()
    builder.add('train', 'a.jpg', 'a')
    builder.add('val', 'b.jpg', 'b')
    with pytest.raises(UserError, match=r"val: class 'b' of image 'b.jpg' has no training image \(1 such"):
        builder.finish()
    builder = SplitBuilder()
    builder.add('test', 'a.jpg', 'a')
    builder.add('test', 'b.jpg', None)
    with pytest.raises(UserError, match=r"'b.jpg' has no label \(1 of 2"):
        builder.finish()


@pytest.mark.parametrize('seed', range(5))
def test_natural_order_is_numeric_order(seed):
    numbers = random.Random(seed).sample(range(10**6), 200)
    assert sorted(map(str, numbers), key=natural_key) == [str(number) for number in sorted(numbers)]
    assert sorted(['a10', 'a', 'a2', '1' * 5000, '9', '٣'], key=natural_key) == [
        '9',
        '1' * 5000,
        'a',
        'a2',
        'a10',
        '٣',
    ]


@pytest.mark.parametrize(
    ('data', 'where'),
    [(b'{"a": 1,\n oops}', ':2: not valid JSON'), (b'', ':1: not valid JSON'), (b'{\n\n"a"', ':3:')],
)
def test_invalid_json_is_reported_with_its_line(tmp_path, data, where):
    (tmp_path / 'x.json').write_bytes(data)
    with pytest.raises(UserError, match=f'x.json{where}'):
        read_json(tmp_path / 'x.json', dict)


def test_summary(tmp_path):
    converted = ConvertedDataset(
        {'train': split(*[('x', 0)] * 6, *[('y', 2)] * 2), 'test': ConvertedSplit(['z'], None)},
        ['a', 'b', 'c'],
        None,
        tmp_path,
    )
    lines = summary_lines(converted, {'train': Path('o/t.json'), 'test': Path('o/e.json')})
    assert lines[0] == f'{Path("o/t.json")}: 8 images, 2 of 3 classes, 2 to 6 images per class (imbalance 3.0)'
    assert lines[1].endswith('1 image, without labels')


def test_repeated_entries_are_left_out_and_several_labels_are_a_warning(tmp_path):
    paths = ['a', 'b', 'a', 'c', 'b', 'caf\u00e9', 'cafe\u0301', 'a']
    split = ConvertedSplit(paths, np.array([0, 1, 0, 1, 0, 2, 2, 0], np.int32))
    test = ConvertedSplit(['a', 'a'], None)
    given = ConvertedDataset({'train': split, 'test': test}, ['x', 'y', 'z'], None, tmp_path, ['earlier'])
    found = without_repeats(given)
    assert list(found.splits['train']) == [('a', 0), ('b', 1), ('c', 1), ('b', 0), ('caf\u00e9', 2)]
    assert found.splits['test'] is test
    assert found.warnings == [
        'earlier',
        'train: 3 entries repeat an image with the same label, and will not be written',
        "train: 1 image has several labels, such as 'b'",
    ]
    assert given.warnings == ['earlier']
    assert without_repeats(found).splits['train'].paths == found.splits['train'].paths
    once = ConvertedDataset({'val': ConvertedSplit(['a', 'b'], np.array([0, 0], np.int32))}, ['x'], None, tmp_path)
    assert without_repeats(once).splits == once.splits
