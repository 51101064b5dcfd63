"""tools/convert.py --append, as a user runs it."""

import json
import os

import pytest

from tests.scripts.test_convert import run


def listed(folder, labels):
    """Write images and a list of them: {split: {name: label}}."""
    folder.mkdir(exist_ok=True)
    for split, images in labels.items():
        for name in images:
            (folder / name).touch()
        (folder / f'{split}.csv').write_text(
            'path,label\n' + ''.join(f'{name},{label}\n' for name, label in images.items())
        )


def tree_of(folder, split='train'):
    return json.loads((folder / f'converted_{split}.json').read_text())


def named(folder, split='train'):
    """Return {file name: class name}."""
    names = json.loads((folder / 'classes.json').read_text())['names']
    tree = tree_of(folder, split)
    assert tree['num_classes'] == len(names)
    return {os.path.basename(entry['fpath']): names[entry['category_id']] for entry in tree['annotations']}


@pytest.fixture
def shop(tmp_path):
    """Return a converted data set of the classes apple and milk."""
    listed(
        tmp_path / 'shop', {'train': {'a.jpg': 'apple', 'm.jpg': 'milk', 'b.jpg': 'apple'}, 'val': {'v.jpg': 'milk'}}
    )
    result = run('csv', 'shop', folder=tmp_path)
    assert result.returncode == 0, result.stderr
    return tmp_path / 'shop'


def test_new_images_and_classes_are_added_and_existing_images_skipped(shop, tmp_path):
    before = tree_of(shop)['annotations']
    new = {'z.jpg': 'bread', 'y.jpg': 'milk', 'ä.jpg': 'Zwieback'}
    listed(tmp_path / 'more', {'train': new, 'val': {'w.jpg': 'bread'}})
    result = run('csv', 'more', 'shop', '--append', folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, '')
    assert 'shop/converted_train.json: 3 images added\n' in result.stdout
    assert 'shop/classes.json: 2 classes added, 4 in total' in result.stdout
    assert tree_of(shop)['annotations'][:3] == before  # labels do not change
    assert json.loads((shop / 'classes.json').read_text())['names'][:2] == ['apple', 'milk']
    assert named(shop) == {'a.jpg': 'apple', 'm.jpg': 'milk', 'b.jpg': 'apple', **new}
    assert named(shop, 'val') == {'v.jpg': 'milk', 'w.jpg': 'bread'}
    assert all((shop / entry['fpath']).exists() for entry in tree_of(shop)['annotations'])
    result = run('csv', 'more', 'shop', '--append', folder=tmp_path)
    assert 'shop/converted_train.json: 0 images added, 3 skipped' in result.stdout
    assert len(tree_of(shop)['annotations']) == 6


def test_an_image_of_one_split_is_not_added_to_another(shop, tmp_path):
    listed(shop, {'train': {'v.jpg': 'milk', 'n.jpg': 'milk', 'a.jpg': 'apple'}, 'val': {}})
    (shop / 'val.csv').unlink()
    result = run('csv', 'shop', '--append', folder=tmp_path)
    assert '1 image added, 2 skipped' in result.stdout, result.stderr
    assert list(named(shop)) == ['a.jpg', 'm.jpg', 'b.jpg', 'n.jpg']
    assert named(shop, 'val') == {'v.jpg': 'milk'}


def test_images_are_known_under_another_separator_and_form_and_no_empty_split_is_written(tmp_path):
    folder = tmp_path / 'shop'
    (folder / 'ä').mkdir(parents=True)
    paths = [f'ä/{number}.jpg' for number in range(4)]
    for path in paths:
        (folder / path).touch()
    (folder / 'one.csv').write_text('path,label\n' + ''.join(f'{path},ä\n' for path in paths))
    (folder / 'two.csv').write_text(
        'path,label\n' + ''.join(f'{path},a\u0308\n'.replace('ä', 'a\u0308').replace('/', '\\') for path in paths)
    )
    assert run('csv', 'shop/one.csv', 'out', folder=tmp_path).returncode == 0
    result = run('csv', 'shop/two.csv', 'out', '--append', '--valid_fraction', '0.5', folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, '')
    assert 'out/converted_train.json: 0 images added, 2 skipped' in result.stdout
    assert 'out/converted_val.json: not written, since all 2 images are in the set already' in result.stdout
    assert not (tmp_path / 'out' / 'converted_val.json').exists()
    assert len(tree_of(tmp_path / 'out')['annotations']) == 4


def test_a_new_split(shop, tmp_path):
    listed(tmp_path / 'more', {'train': {'z.jpg': 'milk'}, 'test': {'t.jpg': 'apple'}})
    (tmp_path / 'more' / 'train.csv').write_text('path,label\nz.jpg,milk\nu.jpg,apple\n')
    (tmp_path / 'more' / 'u.jpg').touch()
    assert run('csv', 'more', 'shop', '--append', folder=tmp_path).returncode == 0
    assert named(shop, 'test') == {'t.jpg': 'apple'}


def test_other_fields_of_old_entries_are_not_changed(shop, tmp_path):
    tree = tree_of(shop)
    tree['annotations'][0]['shelf'] = [{'row': 3}]
    (shop / 'converted_train.json').write_text(json.dumps(tree))
    listed(tmp_path / 'more', {'train': {'z.jpg': 'milk'}})
    assert run('csv', 'more', 'shop', '--append', folder=tmp_path).returncode == 0
    assert tree_of(shop)['annotations'][:3] == tree['annotations']
    assert len(tree_of(shop)['annotations']) == 4


@pytest.mark.parametrize(
    ('corrupt', 'words'),
    [
        (lambda shop: (shop / 'classes.json').unlink(), 'classes.json: no such file; --append needs'),
        (lambda shop: (shop / 'classes.json').write_text('{"names": ["apple"]}'), 'num_classes is 2'),
        (lambda shop: (shop / 'converted_val.json').write_text('{'), 'converted_val.json:1: not valid JSON'),
        (
            lambda shop: (shop / 'converted_train.json').write_text(
                json.dumps({'num_classes': 2, 'annotations': tree_of(shop)['annotations']})
            ),
            'converted_train.json: not written by tools/convert.py',
        ),
        (
            lambda shop: (shop / 'converted_train.json').write_text(
                json.dumps({'annotations': tree_of(shop)['annotations'], 'shelves': [{'row': 1}], 'num_classes': 2})
            ),
            'converted_train.json',
        ),
        (
            lambda shop: (shop / 'converted_test.json').write_text('{"images": [{"image_id": "x.jpg"}]}'),
            'converted_test.json has no labels, but the test split of SOURCE has labels',
        ),
    ],
    ids=range(6),
)
def test_mistakes_change_nothing(shop, tmp_path, corrupt, words):
    corrupt(shop)
    listed(tmp_path / 'more', {'train': {'z.jpg': 'milk', 'y.jpg': 'apple'}, 'test': {'t.jpg': 'apple'}})
    before = {path.name: path.read_bytes() for path in shop.iterdir()}
    result = run('csv', 'more', 'shop', '--append', folder=tmp_path)
    assert result.returncode == 2, result.stdout
    assert result.stderr.startswith('error: ')
    assert result.stderr.count('\n') == 1
    assert words in result.stderr
    assert {path.name: path.read_bytes() for path in shop.iterdir()} == before


def test_unlabeled_test_images(tmp_path):
    for name in ('old', 'new'):
        (tmp_path / name).mkdir()
        for image in ('x', 'y'):
            (tmp_path / name / f'{name}_{image}.jpg').touch()
        (tmp_path / name / 'train.txt').write_text(f'{name}_x.jpg 1\n')
        (tmp_path / name / 'test.txt').write_text(f'{name}_y.jpg\n')
    assert run('list', 'old', 'out', folder=tmp_path).returncode == 0
    assert run('list', 'new', 'out', '--append', folder=tmp_path).returncode == 0
    entries = json.loads((tmp_path / 'out' / 'converted_test.json').read_text())['images']
    assert [entry['image_id'] for entry in entries] == ['../old/old_y.jpg', '../new/new_y.jpg']
