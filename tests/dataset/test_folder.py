"""Class folders: names, splits and labels."""

import os
from pathlib import Path

import numpy as np
import pytest

from lib.dataset.folder import labels_by_folder, split_folder
from lib.errors import UserError


def make(root: Path, **classes: int) -> Path:
    for name, number in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for position in range(number):
            (root / name / f'{position}.jpg').touch()
    return root


def split(root, fraction=0.2, seed=0):
    read = split_folder(root, valid_fraction=fraction, seed=seed)
    return read.train, read.valid, read.names


def valid_paths(root, name, **options):
    return {path for path in split(root, **options)[1].paths if path.startswith(f'{name}/')}


def test_class_folders_contain_images_and_are_in_natural_order(tmp_path):
    make(tmp_path, sku10=1, sku9=2, empty=0, b=1)
    make(tmp_path / 'a', deep=1)
    make(tmp_path, **{'.hidden': 3})
    (tmp_path / 'sku9' / '.a.jpg').touch()
    (tmp_path / 'loose.jpg').touch()
    train, valid, names = split(tmp_path)
    assert names == ['a', 'b', 'sku9', 'sku10']
    assert 'a/deep/0.jpg' in train.paths
    assert sorted(train.paths + valid.paths) == [
        'a/deep/0.jpg',
        'b/0.jpg',
        'sku10/0.jpg',
        'sku9/0.jpg',
        'sku9/1.jpg',
    ]


@pytest.mark.parametrize('fraction', [0.0, 0.1, 0.25, 0.5, 0.9])
def test_sizes_are_stratified(tmp_path, fraction):
    sizes = {'a': 1, 'b': 2, 'c': 3, 'd': 10, 'e': 33}
    train, valid, names = split(make(tmp_path, **sizes), fraction)
    assert not set(train.paths) & set(valid.paths)
    assert train.labels.dtype == valid.labels.dtype == np.int32
    for label, name in enumerate(names):
        expected = 0
        if fraction and sizes[name] > 1:
            expected = min(sizes[name] - 1, max(1, round(fraction * sizes[name])))
        assert (valid.labels == label).sum() == expected, name
        assert (train.labels == label).sum() == sizes[name] - expected, name
    for images in (train, valid):
        assert [names[label] for label in images.labels] == [path.split('/')[0] for path in images.paths]


def test_the_split_depends_on_the_seed_alone(tmp_path):
    make(tmp_path, a=20, b=20)
    assert split(tmp_path, seed=3)[1].paths == split(tmp_path, seed=3)[1].paths
    assert len({tuple(split(tmp_path, seed=seed)[1].paths) for seed in range(5)}) > 1


def test_a_new_image_or_class_does_not_change_the_split_of_other_classes(tmp_path):
    make(tmp_path, b=20, c=20)
    before = valid_paths(tmp_path, 'b'), valid_paths(tmp_path, 'c')
    make(tmp_path, b=21, a=9)
    assert valid_paths(tmp_path, 'c') == before[1]
    # Classes of equal size are split differently: each has its own random stream.
    assert {path.split('/')[1] for path in before[0]} != {path.split('/')[1] for path in before[1]}


@pytest.mark.parametrize('valid_name', ['val', 'valid', 'validation'])
def test_folders_of_splits_are_the_splits(tmp_path, valid_name):
    make(tmp_path / 'train', a=3, b=2)
    make(tmp_path / valid_name, b=4)
    train, valid, names = split(tmp_path)
    assert names == ['a', 'b']
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert valid.labels.tolist() == [1] * 4
    assert valid.paths[0] == f'{valid_name}/b/0.jpg'
    make(tmp_path / valid_name, new=1)
    with pytest.raises(UserError, match="class 'new'"):
        split(tmp_path)


def test_a_train_folder_without_validation_is_split(tmp_path):
    make(tmp_path / 'train', a=4, b=4)
    make(tmp_path / 'test', a=1)
    train, valid, names = split(tmp_path)
    assert names == ['a', 'b']
    assert all(path.startswith('train/') for path in train.paths + valid.paths)
    assert len(valid.paths) == 2


def test_classes_may_be_named_train_and_val(tmp_path):
    make(tmp_path, train=4, val=4, bus=4)
    assert split(tmp_path)[2] == ['bus', 'train', 'val']


@pytest.mark.parametrize(
    ('paths', 'labels'),
    [
        (['tea/1.jpg', 'cola/1.jpg', 'tea/old/2.jpg'], [1, 0, 1]),
        (['Fruit/Apple/1.jpg', 'cola/1.jpg'], [2, 0]),
        (['Fruit/Apple/box/1.jpg', 'Fruit/1.jpg'], [2, -1]),
        (['tea/1.jpg', 'coffee/1.jpg'], [1, -1]),
        (['tea/1.jpg', '2.jpg'], [1, -1]),
        (['Fruit/1.jpg', 'x/tea/1.jpg'], [-1, -1]),
    ],
)
def test_labels_by_folder(paths, labels):
    found, unknown = labels_by_folder(paths, ['cola', 'tea', 'Fruit/Apple'])
    assert found.dtype == np.int32
    assert found.tolist() == labels
    without = [path.rpartition('/')[0] for path, label in zip(paths, labels, strict=True) if label < 0]
    assert unknown == [folder for folder in without if folder]


def test_errors_describe_the_layout(tmp_path):
    with pytest.raises(UserError, match='no such folder'):
        split(tmp_path / 'absent')
    (tmp_path / 'x.jpg').touch()
    with pytest.raises(UserError, match='not a folder'):
        split(tmp_path / 'x.jpg')
    with pytest.raises(UserError, match=r'no class folders .* needed is one sub-folder per class'):
        split(tmp_path)


def read(root, **options):
    return split_folder(root, **{'valid_fraction': 0.0, 'seed': 0, **options})


def test_folders_inside_class_folders_count_for_the_outer_class_and_are_logged(tmp_path):
    make(tmp_path / 'milk', oat=2, cow=1)
    make(tmp_path, tea=1)
    found = read(tmp_path)
    assert found.names == ['milk', 'tea']
    assert found.parents == []
    assert found.notes == [
        f'{tmp_path}: folders inside class folders count for the outer class: milk/cow, milk/oat',
        '  to make each of them a class: --DATASET_NESTED_CLASSES True',
    ]
    assert read(make(tmp_path / 'flat', tea=1)).notes == []


@pytest.mark.parametrize('layout', ['', 'train'])
def test_nested_classes_are_the_folders_that_contain_images(tmp_path, layout):
    base = tmp_path / layout
    make(base / 'Drinks' / 'Milk', oat=5, cow=4)
    make(base / 'Drinks', tea=3)
    make(base, bread=2)
    make(base / 'bread' / 'dark', rye=1)
    found = read(tmp_path, nested=True, valid_fraction=0.3)
    assert found.names == ['Drinks/Milk/cow', 'Drinks/Milk/oat', 'Drinks/tea', 'bread', 'bread/dark/rye']
    for images in (found.train, found.valid):
        for path, label in zip(images.paths, images.labels.tolist(), strict=True):
            assert path.removeprefix(f'{layout}/').rpartition('/')[0] == found.names[label]
    assert dict(zip(found.names, found.parents, strict=True))['Drinks/Milk/oat'] == ['Drinks', 'Milk']
    assert len(found.valid.paths) == 2 + 1 + 1 + 1
    assert found.notes == [f'{tmp_path}: classes with classes inside: {layout + "/" if layout else ""}bread']


def test_nested_classes_with_a_validation_folder(tmp_path):
    make(tmp_path / 'train' / 'a', x=2, y=2)
    make(tmp_path / 'val' / 'a', y=1)
    found = read(tmp_path, nested=True)
    assert found.names == ['a/x', 'a/y']
    assert found.valid.labels.tolist() == [1]
    make(tmp_path / 'val' / 'a', z=1)
    with pytest.raises(UserError, match="class 'a/z'"):
        read(tmp_path, nested=True)


@pytest.mark.parametrize(('train', 'valid', 'test'), [('Train', 'Val', 'Test'), ('TRAIN', 'Validation', 'test')])
def test_split_folders_may_have_capital_letters(tmp_path, train, valid, test):
    make(tmp_path / train, a=3, b=2)
    make(tmp_path / test, a=9)
    assert read(tmp_path).names == ['a', 'b']
    make(tmp_path / valid, b=1)
    found = read(tmp_path)
    assert found.names == ['a', 'b']
    assert found.valid.paths == [f'{valid}/b/0.jpg']


def test_a_class_folder_without_images_and_loose_images_are_named(tmp_path):
    make(tmp_path, cola=2, tea=1, empty=0)
    (tmp_path / 'texts' / 'deep').mkdir(parents=True)
    (tmp_path / 'texts' / 'deep' / 'a.mp4').write_bytes(b'no image')
    (tmp_path / 'loose.jpg').touch()
    found = read(tmp_path)
    assert found.names == ['cola', 'tea']
    assert found.warnings == [
        f'{tmp_path}: 1 image is in no class folder: loose.jpg',
        f'{tmp_path}: 2 folders are no class, without images: empty, texts',
    ]
    assert found.notes == [f'{tmp_path}: 1 file left out: 1 .mp4', '  texts: 1 (deep/a.mp4)']
    nested = read(tmp_path, nested=True)
    assert nested.warnings == found.warnings
    given = make(tmp_path / 'given' / 'train', cola=1, gone=0).parent
    make(given / 'val', cola=1)
    (given / 'train' / 'lost.png').touch()
    assert read(given).warnings == [
        f'{given}: 1 image is in no class folder: train/lost.png',
        f'{given}: 1 folder is no class, without images: train/gone',
    ]


def test_the_error_of_a_folder_without_classes_counts_what_it_contains(tmp_path):
    make(tmp_path, a=0)
    (tmp_path / 'a' / 'x.cr2').write_bytes(b'II*\0')
    (tmp_path / 'b.jpg').touch()
    expected = r'no class folders with images in it \(1 file left out: 1 \.cr2; 1 image is directly in it\); needed'
    with pytest.raises(UserError, match=expected):
        read(tmp_path)


def test_class_folders_in_two_unicode_forms_or_bytes_are_one_class_or_a_text(tmp_path):
    for name, number in (('Caf\u00e9', 2), ('Cafe\u0301', 3), ('cola', 1)):
        make(tmp_path, **{name: number})
    byte_name = os.path.join(os.fsencode(tmp_path), b'caf\xe9')
    os.mkdir(byte_name)
    with open(os.path.join(byte_name, b'\xff.jpg'), 'wb'):
        pass
    found = read(tmp_path)
    assert sorted(found.names) == sorted(['Caf\u00e9', r'caf\xe9', 'cola'])
    counts = dict(zip(found.names, np.bincount(found.train.labels).tolist(), strict=True))
    assert counts == {'Caf\u00e9': 5, r'caf\xe9': 1, 'cola': 1}
    assert all((tmp_path / path).exists() for path in found.train.paths)
