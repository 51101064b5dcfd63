import json

import pytest

from lib.errors import UserError
from lib.formats.aliproducts import convert_aliproducts
from tests.aliproducts import class_ids, make_aliproducts


@pytest.mark.parametrize('padded', [True, False])
@pytest.mark.parametrize('text_ids', [True, False])
def test_official_form(tmp_path, padded, text_ids):
    make_aliproducts(tmp_path, 6, [1, 2, 3, 4, 5, 6], padded=padded, text_ids=text_ids, size=8)
    converted = convert_aliproducts(tmp_path)
    assert converted.names == [str(number) for number in sorted(class_ids(6))]
    assert converted.parents[0] == ['Goods', 'Family 0']
    assert converted.parents[5] == ['Goods', 'Family 2']
    assert converted.warnings == []
    listed = json.loads((tmp_path / 'train.json').read_text())['images']
    for (path, label), entry in zip(converted.splits['train'], listed, strict=True):
        assert path.endswith('/' + entry['image_id'])
        assert converted.names[label] == str(entry['class_id'])
        assert (tmp_path / path).is_file()
    assert len(converted.splits['val']) == 12
    assert converted.splits['test'].labels is None
    assert converted.splits['test'].paths == [f'test/{position}.jpg' for position in range(6)]


def test_names_are_original_ids_and_spellings_of_a_number_are_one_class(tmp_path):
    images = [{'image_id': 'a.jpg', 'class_id': '00010'}, {'image_id': 'b.jpg', 'class_id': 10}]
    images.append({'image_id': 'c.jpg', 'class_id': '9'})
    (tmp_path / 'train.json').write_text(json.dumps({'images': images}))
    (tmp_path / 'train' / '00010').mkdir(parents=True)
    (tmp_path / 'train' / '9').mkdir()
    converted = convert_aliproducts(tmp_path)
    assert converted.names == ['9', '00010']
    assert list(converted.splits['train']) == [
        ('train/00010/a.jpg', 1),
        ('train/00010/b.jpg', 1),
        ('train/9/c.jpg', 0),
    ]
    assert converted.parents is None


def test_test_images_in_numbered_folders(tmp_path):
    make_aliproducts(tmp_path, 2, 1, num_test=0, size=8)
    for name in ('test10/b.jpg', 'test2/x/a.JPG', 'test2/c.png', 'test2/.hidden.jpg', 'test2/readme.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    paths = convert_aliproducts(tmp_path).splits['test'].paths
    assert paths == ['test2/c.png', 'test2/x/a.JPG', 'test10/b.jpg']


def test_only_train_json_is_needed(tmp_path):
    make_aliproducts(tmp_path, 2, 1, num_test=0, size=8, tree=False)
    (tmp_path / 'val.json').unlink()
    assert list(convert_aliproducts(tmp_path).splits) == ['train']


def test_class_in_val_only_is_an_error(tmp_path):
    make_aliproducts(tmp_path, 3, 1, size=8)
    images = [{'image_id': 'a.jpg', 'class_id': '3'}, {'image_id': 'b.jpg', 'class_id': '4711'}]
    (tmp_path / 'val.json').write_text(json.dumps({'images': images}))
    with pytest.raises(UserError, match=r'val\.json: images\[1\]: class 4711 has no image in train\.json'):
        convert_aliproducts(tmp_path)


def test_missing_folders_are_errors(tmp_path):
    make_aliproducts(tmp_path, 3, 1, size=8)
    (tmp_path / 'val' / '00010').rename(tmp_path / 'val' / 'x')
    with pytest.raises(UserError, match=r'val: no folder 10 or 00010 for class 10 \(1 faulty in all\)'):
        convert_aliproducts(tmp_path)
    (tmp_path / 'train').rename(tmp_path / 'elsewhere')
    with pytest.raises(UserError, match='train: no such folder'):
        convert_aliproducts(tmp_path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('[]', 'train.json: must be {"images"'),
        ('{"images": []}', 'lists no images'),
        ('{"images": [{"image_id": "a", "class_id": "1"}, 5]}', r'images\[1\]: 5 is not an object'),
        ('{"images": [{"class_id": "1"}]}', r'images\[0\]: image_id is missing, not a file name'),
        ('{"images": [{"image_id": "", "class_id": "1"}]}', r"images\[0\]: image_id is '', not a file name"),
        ('{"images": [{"image_id": "a", "class_id": "x1"}]}', r"images\[0\]: class_id is 'x1', not a number"),
        ('{"images": [{"image_id": "a", "class_id": -4}]}', r'images\[0\]: class_id is -4, not a number'),
        ('{"images": [{"image_id": "a", "class_id": true}]}', r'images\[0\]: class_id is True, not a number'),
        ('{"images": [{"image_id": "a", "class_id": 99999999999999999999}]}', 'not a number'),
        ('{"images": [\n{"image_id"', r'train.json:2: not valid JSON'),
    ],
)
def test_errors_have_positions(tmp_path, content, message):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train.json').write_text(content)
    with pytest.raises(UserError, match=message):
        convert_aliproducts(tmp_path)


def test_no_train_json(tmp_path):
    with pytest.raises(UserError, match=r'contains no train.json'):
        convert_aliproducts(tmp_path)


CHAIN = ['Food', 'Snacks']


@pytest.mark.parametrize(
    'tree',
    [
        {'Food': {'Snacks': {'3': {}, '00010': {'name': 'x'}}}},
        {'Food': {'Snacks': ['3', 10]}},
        [{'Food': [{'Snacks': [3, '10']}]}],
        {'3': 'Snacks', '10': 'Snacks', 'Snacks': 'Food', 'Food': None},
        {'00003': 'Snacks', '10': 'Snacks', 'Snacks': 'Food'},
        [
            {'id': 3, 'parent': 77},
            {'id': '10', 'parent': '77'},
            {'id': 77, 'parent': 5, 'name': 'Snacks'},
            {'id': 5, 'name': 'Food'},
        ],
    ],
)
def test_forms_of_the_product_tree(tmp_path, tree):
    make_aliproducts(tmp_path, 2, 1, size=8)
    (tmp_path / 'product_tree.json').write_text(json.dumps(tree))
    converted = convert_aliproducts(tmp_path)
    assert converted.parents == [CHAIN, CHAIN]
    assert converted.warnings == []


@pytest.mark.parametrize('content', ['5', '[]', '{}', 'null', '"x"', '{broken', '{"a": "b"}', '[[[1.5]]]'])
def test_unreadable_product_tree_is_a_warning(tmp_path, content):
    make_aliproducts(tmp_path, 2, 1, size=8)
    (tmp_path / 'product_tree.json').write_text(content)
    converted = convert_aliproducts(tmp_path)
    assert converted.parents is None
    assert len(converted.warnings) == 1
    assert 'product_tree.json' in converted.warnings[0]


def test_cycle_and_gap_in_the_product_tree(tmp_path):
    make_aliproducts(tmp_path, 2, 1, size=8)
    (tmp_path / 'product_tree.json').write_text('{"3": "a", "a": "b", "b": "a"}')
    converted = convert_aliproducts(tmp_path)
    assert converted.parents == [['b', 'a'], []]
    assert '1 of 2 classes have no parents' in converted.warnings[0]
