"""The formats `imagefolder`, `inat` and `grocery_store`."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from lib.errors import UserError
from lib.formats.imagefolder import convert_image_folder
from lib.formats.inat import convert_inat
from lib.formats.text_lists import convert_grocery_store
from lib.formats.write import write_converted


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_imagefolder(tmp_path):
    touch(
        tmp_path,
        'train/10/b.jpg',
        'train/10/a10.PNG',
        'train/10/a9.jpeg',
        'train/2/x.webp',
        'train/2/notes.txt',
    )
    touch(tmp_path, 'valid/2/v.jpg', 'test/t2.jpg', 'test/t10.jpg', 'train/.cache/no.jpg')
    converted = convert_image_folder(tmp_path)
    assert converted.names == ['2', '10']
    assert converted.parents is None
    assert list(converted.splits['train']) == [
        ('train/2/x.webp', 0),
        ('train/10/a9.jpeg', 1),
        ('train/10/a10.PNG', 1),
        ('train/10/b.jpg', 1),
    ]
    assert list(converted.splits['val']) == [('valid/2/v.jpg', 0)]
    assert list(converted.splits['test']) == [('test/t2.jpg', None), ('test/t10.jpg', None)]


def test_imagefolder_nested_classes_have_parents(tmp_path):
    touch(tmp_path, 'train/Fruit/Apple/a.jpg', 'train/Fruit/Pear/b.jpg', 'train/Milk/c.jpg', 'test/Milk/d.jpg')
    converted = convert_image_folder(tmp_path)
    assert converted.names == ['Fruit/Apple', 'Fruit/Pear', 'Milk']
    assert converted.parents == [['Fruit'], ['Fruit'], []]
    assert list(converted.splits['test']) == [('test/Milk/d.jpg', 2)]


def test_imagefolder_follows_links_but_no_cycle(tmp_path):
    touch(tmp_path, 'real/a.jpg', 'set/train/B/b.jpg')
    (tmp_path / 'set/train/A').symlink_to(tmp_path / 'real')
    (tmp_path / 'set/train/B/up').symlink_to(tmp_path / 'set/train')
    converted = convert_image_folder(tmp_path / 'set')
    assert converted.names[:2] == ['A', 'B']
    assert len(converted.splits['train']) < 5


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        (['a/x.jpg'], 'contains no folder train'),
        (['train/x.jpg'], 'is in no class folder'),
        (['train/a/x.txt'], 'train: contains no images'),
        (['train/a/x.jpg', 'val/b/y.jpg'], "val: class 'b' of image 'val/b/y.jpg' has no training image"),
        (['train/a/x.jpg', 'val/a/y.jpg', 'valid/a/y.jpg'], 'val and valid could both be the val split'),
    ],
)
def test_imagefolder_errors(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        convert_image_folder(tmp_path)


def inat(folder, split='train', **changes):
    tree = {
        'images': [{'id': 7, 'file_name': 'a/x.jpg', 'width': 3}, {'id': 5, 'file_name': 'b/y.jpg'}],
        'annotations': [
            {'id': 0, 'image_id': 5, 'category_id': 30},
            {'id': 1, 'image_id': 7, 'category_id': 4},
        ],
        'categories': [
            {'id': 30, 'name': 'Lynx', 'supercategory': 'Mammals'},
            {'id': 4, 'name': 'Crow', 'supercategory': 'Birds'},
            {'id': 9, 'name': 'Crow', 'supercategory': 'Birds'},
        ],
    }
    (folder / f'{split}2018.json').write_text(json.dumps(tree | changes))


def test_inat(tmp_path):
    inat(tmp_path)
    inat(tmp_path, 'val')
    inat(tmp_path, 'test', annotations=None)
    converted = convert_inat(tmp_path)
    assert converted.names == ['Crow (4)', 'Crow (9)', 'Lynx']
    assert converted.parents == [['Birds'], ['Birds'], ['Mammals']]
    assert list(converted.splits['train']) == [('a/x.jpg', 0), ('b/y.jpg', 2)]
    assert list(converted.splits['test']) == [('a/x.jpg', None), ('b/y.jpg', None)]


def test_inat_ranks_are_the_parents(tmp_path):
    group = {'kingdom': 'Animalia', 'order': 'Carnivora', 'genus': 'Lynx'}
    inat(
        tmp_path,
        categories=[{'id': 4, 'name': 'a', **group}, {'id': 30, 'name': 'b', **group}],
    )
    assert convert_inat(tmp_path).parents == [['Animalia', 'Carnivora', 'Lynx']] * 2


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'annotations': [{'image_id': 1, 'category_id': 4}]}, r'annotations\[0\]: image_id 1 is no image'),
        (
            {'annotations': [{'image_id': 5, 'category_id': 1}]},
            r'annotations\[0\]: category_id 1 is no category',
        ),
        ({'annotations': []}, r"images\[0\]: 'a/x.jpg' has no annotation; .*\(2 faulty in all\)"),
        (
            {'annotations': [{'image_id': 5, 'category_id': 4}, {'image_id': 5, 'category_id': 9}]},
            r'annotations\[1\]: a second category for image 5',
        ),
        (
            {'annotations': [{'image_id': 5, 'category_id': 'x'}]},
            r"annotations\[0\]: category_id is 'x', not a number",
        ),
        (
            {'images': [{'id': 5, 'file_name': 'a'}, {'id': 6}]},
            r'images\[1\]: file_name is missing, not a path',
        ),
        ({'images': 5}, 'train2018.json: Expected `array`'),
        ({'categories': []}, 'has no categories'),
        ({'categories': [{'id': '4', 'name': 'a'}]}, r"categories\[0\]: id is '4', not a number"),
        ({'categories': [{'id': 4, 'name': 'a'}] * 2}, '2 categories have only 1 different ids'),
    ],
)
def test_inat_errors(tmp_path, changes, message):
    inat(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        convert_inat(tmp_path)


def test_inat_needs_a_training_file(tmp_path):
    inat(tmp_path, 'val')
    with pytest.raises(UserError, match=r'no train2018.json'):
        convert_inat(tmp_path)


HEADER = (
    'Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),'
    'Iconic Image Path (str),Product Description Path (str)'
)


def grocery(folder, lines, classes=None):
    folder.mkdir(parents=True, exist_ok=True)
    rows = classes or ['Pink-Lady,1,Apple,0,/icons/Fruit/Apple/x.jpg,/d', '"Leek, long",0,Leek,1,,']
    (folder / 'classes.csv').write_text('\n'.join([HEADER, *rows, '']))
    (folder / 'train.txt').write_text(lines)


def test_grocery_store(tmp_path):
    grocery(tmp_path / 'repo' / 'dataset', 'train/a, b.jpg, 1, 0\ntrain/c.jpg, 0, 1\n')
    (tmp_path / 'repo' / 'dataset' / 'test.txt').write_text('test/d.jpg, 1, 0\n')
    converted = convert_grocery_store(tmp_path / 'repo')
    assert converted.names == ['Leek, long', 'Pink-Lady']
    assert converted.parents == [['Leek'], ['Fruit', 'Apple']]
    assert list(converted.splits['train']) == [('train/a, b.jpg', 1), ('train/c.jpg', 0)]
    assert list(converted.splits['test']) == [('test/d.jpg', 1)]
    assert converted.root == tmp_path / 'repo' / 'dataset'


def test_grocery_store_errors(tmp_path):
    grocery(tmp_path, 'ok.jpg, 0, 1\nx.jpg, 0\ny.jpg, 9, 0\nz.jpg, 1, 1\n')
    with pytest.raises(UserError) as caught:
        convert_grocery_store(tmp_path)
    message = str(caught.value)
    for part in (
        "train.txt:2: 'x.jpg, 0' is not of the form",
        'train.txt:3: class 9 is not in classes.csv',
        'train.txt:4: coarse class 1, but 0 in classes.csv',
        '(3 faulty in all)',
    ):
        assert part in message
    grocery(tmp_path, 'ok.jpg, 0, 1\n', ['a,0,b,0,,', 'c,2,b,0,,'])
    with pytest.raises(UserError, match='without a gap'):
        convert_grocery_store(tmp_path)
    grocery(tmp_path, 'ok.jpg, 0, 1\n', ['a,zero,b,0,,'])
    with pytest.raises(UserError, match=r'classes.csv:2: not a class'):
        convert_grocery_store(tmp_path)
    with pytest.raises(UserError, match=r'no classes.csv and train.txt'):
        convert_grocery_store(tmp_path / 'absent')


@pytest.mark.skipif('REAL_PHOTOS' not in os.environ, reason='REAL_PHOTOS names no folder with real photos')
def test_grocery_store_real():
    root = Path(os.environ['REAL_PHOTOS'])
    converted = convert_grocery_store(root)
    assert len(converted.names) == 81
    assert [len(converted.splits[split]) for split in ('train', 'val')] == [2640, 296]
    assert len({parents[-1] for parents in converted.parents}) == 43
    assert {parents[0] for parents in converted.parents} == {'Fruit', 'Vegetables', 'Packages'}
    # Folders and ids agree.
    for path, label in converted.splits['train']:
        folders = path.split('/')
        assert converted.names[label] in folders
        assert converted.parents[label][0] == folders[1]
    assert np.bincount(converted.splits['train'].labels).min() > 0


def repeated(position, *, image_id=7, name='a/x.jpg'):
    images = [{'id': 7, 'file_name': 'a/x.jpg'}, {'id': 5, 'file_name': 'b/y.jpg'}]
    images.insert(position, {'id': image_id, 'file_name': name})
    return images


@pytest.mark.parametrize('position', [0, 1, 2])
@pytest.mark.parametrize(('image_id', 'name'), [(7, 'a/x.jpg'), (8, 'a/x.jpg'), ('7', 'a/x.jpg'), (5, 'b/y.jpg')])
def test_inat_images_that_are_repeated_are_read_once(tmp_path, position, image_id, name):
    images = repeated(position, image_id=image_id, name=name)
    inat(tmp_path, images=images)
    converted = convert_inat(tmp_path)
    names = list(dict.fromkeys(image['file_name'] for image in images))
    assert list(converted.splits['train']) == [(name, {'a/x.jpg': 0, 'b/y.jpg': 2}[name]) for name in names]
    assert converted.warnings == [f'{tmp_path}/train2018.json: 1 of 3 images is repeated, and read once']


def test_inat_images_that_differ_in_the_unicode_form_are_one(tmp_path):
    images = [{'id': 7, 'file_name': 'caf\u00e9.jpg'}, {'id': 5, 'file_name': 'cafe\u0301.jpg'}]
    inat(tmp_path, images=images, annotations=[{'image_id': 5, 'category_id': 4}, {'image_id': 7, 'category_id': 4}])
    assert list(convert_inat(tmp_path).splits['train']) == [('caf\u00e9.jpg', 0)]


@pytest.mark.parametrize(
    ('images', 'annotations', 'message'),
    [
        (
            repeated(2, name='c/z.jpg'),
            None,
            r"images\[2\]: 'c/z.jpg' has the id 7 of images\[0\], 'a/x.jpg' \(1 faulty",
        ),
        (
            repeated(0, name='c/z.jpg'),
            None,
            r"images\[1\]: 'a/x.jpg' has the id 7 of images\[0\], 'c/z.jpg' \(1 faulty",
        ),
        (
            repeated(2, image_id=8),
            [{'image_id': 5, 'category_id': 4}, {'image_id': 7, 'category_id': 4}, {'image_id': 8, 'category_id': 9}],
            r'annotations\[2\]: a second category for image 8',
        ),
        (repeated(1, image_id=8, name='c/z.jpg'), None, r"images\[1\]: 'c/z.jpg' has no annotation"),
    ],
)
def test_inat_images_with_one_id(tmp_path, images, annotations, message):
    inat(tmp_path, images=images, **({'annotations': annotations} if annotations else {}))
    with pytest.raises(UserError, match=message):
        convert_inat(tmp_path)


def test_inat_files_of_other_programs(tmp_path):
    inat(tmp_path)
    expected = convert_inat(tmp_path)
    file = tmp_path / 'train2018.json'
    tree = json.loads(file.read_text())
    for annotation in tree['annotations']:
        annotation |= {
            'bbox': [float('nan')] * 4,
            'area': float('inf'),
            'category_id': float(annotation['category_id']),
        }
    tree['info'] = {'seed': int('9' * 400)}
    for encoding in ('utf-8', 'utf-8-sig', 'utf-16'):
        file.write_text(json.dumps(tree), encoding=encoding)
        converted = convert_inat(tmp_path)
        assert (list(converted.splits['train']), converted.names) == (list(expected.splits['train']), expected.names)


@pytest.mark.skipif(os.name == 'nt', reason='Windows allows no such names')
def test_file_names_that_are_not_utf8_are_one_error_line(tmp_path):
    touch(tmp_path, 'train/a/x.jpg')
    folder = os.path.join(os.fsencode(tmp_path), b'train', b'caf\xe9')
    os.mkdir(folder)
    for name in (b'1.jpg', b'2.jpg'):
        with open(os.path.join(folder, name), 'wb'):
            pass
    converted = convert_image_folder(tmp_path)
    assert converted.names == ['a', r'caf\xe9']
    with pytest.raises(UserError) as caught:
        write_converted(converted, tmp_path)
    line = 'train: the paths of 2 files are not UTF-8, as JSON must be: train/caf\\xe9/1.jpg; rename them'
    assert str(caught.value).startswith(line)
    assert not (tmp_path / 'converted_train.json').exists()


def test_imagefolder_reports_what_it_leaves_out(tmp_path):
    touch(tmp_path, 'train/a/x.jpg', 'train/a/notes.txt', 'train/@eaDir/x.jpg', 'train/4.00638E+12/y.jpg')
    converted = convert_image_folder(tmp_path)
    assert converted.names == ['4.00638E+12', 'a']
    assert converted.warnings[0].startswith('1 class name is a number that a spreadsheet has rounded (4.00638E+12)')
    assert converted.warnings[1:] == [
        f'{tmp_path}: 1 file left out: 1 .txt',
        '  train/a: 1 (notes.txt)',
        f'{tmp_path}: folders left out: @eaDir',
    ]
