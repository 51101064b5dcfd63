"""Class folders: names, splits and labels."""

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
