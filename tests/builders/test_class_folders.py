"""Class folders and folders of new photos as splits: labels, names of any bytes, HEIC without its package."""

import io
import logging
import os
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lib.audit.report import AuditSplit, audit_splits
from lib.builders.data import open_named_images, open_test_split, open_training_data
from lib.builders.loader import build_train_loader
from lib.builders.split import found_split
from lib.builders.split import test_folder_split as folder_split
from lib.config.yaml_text import as_node
from lib.dataset.image_format import HEIC_HINT
from lib.errors import UserError
from lib.formats.text_lists import convert_csv
from lib.formats.write import write_converted
from lib.metrics.accuracy import compute_metrics
from lib.metrics.predictions import predictions_from_classes
from lib.report.describe import describe_audit
from lib.runtime.device import pick_device
from lib.runtime.files import write_json
from lib.runtime.log import LOGGER
from lib.trainer.run_folder import BadImages, RunFolder, TooManyBadImages
from tests.defaults import DEFAULTS
from tests.scripts.in_process import fresh_logger

DEVICE = pick_device('cpu', 'float32')


def config(root, **changes):
    changes = {name.replace('__', '.'): value for name, value in changes.items()}
    tiny = {'RUN.NUM_WORKERS': 0, 'INPUT.SIZE': 16, 'TRAIN.BATCH_SIZE': 4}
    return as_node(DEFAULTS | tiny | {'NAME': 'x', 'DATASET.NAME': 'annotations', 'DATASET.ROOT': str(root)} | changes)


def photo(name: str = 'JPEG') -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3)).save(buffer, name)
    return buffer.getvalue()


def fill(root, *paths: str | bytes, data: bytes | None = None):
    for path in paths:
        whole = os.path.join(os.fsencode(root), os.fsencode(path))
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        with open(whole, 'wb') as file:
            file.write(photo() if data is None else data)
    return root


@pytest.fixture
def lines():
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    with fresh_logger():
        LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)
        yield found


@pytest.fixture
def without_heic(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)


def test_images_of_unknown_folders_have_no_label_and_the_others_count(tmp_path, lines):
    fill(tmp_path, 'cola/1.jpg', 'cola/2.jpg', 'tea/new/3.jpg', 'coffee/4.jpg', '5.jpg')
    split = folder_split(str(tmp_path), ['cola', 'milk', 'tea'])
    labels = dict(zip(split.names.to_pylist(), split.labels.tolist(), strict=True))
    assert labels == {'5.jpg': -1, 'coffee/4.jpg': -1, 'cola/1.jpg': 0, 'cola/2.jpg': 0, 'tea/new/3.jpg': 2}
    assert lines[-3:] == [
        f'{tmp_path}: 2 of 5 images have no label, and do not count in metrics',
        '  folders that no class is named like: coffee',
        '  images in no folder: 5.jpg',
    ]
    # By hand: cola 1 of 2, tea 1 of 1; mean class error (1/2 + 0) / 2.
    predicted = np.array([{'cola/2.jpg': 1, 'tea/new/3.jpg': 2}.get(name, 0) for name in labels])
    metrics = compute_metrics(predictions_from_classes(split.labels, predicted), np.array([5, 5, 5]))
    assert metrics['top1'] == pytest.approx(2 / 3)
    assert metrics['mean_class_error'] == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ('paths', 'line'),
    [
        (['a/1.jpg', 'b/2.jpg'], 'labels from its folders, which are named after classes'),
        (['a/1.jpg', '2.jpg'], '1 of 2 images has no label, and does not count in metrics'),
        (['x/1.jpg', 'y/2.jpg'], 'no labels, since no folder is named after a class'),
    ],
)
def test_known_and_unknown_folders(tmp_path, lines, paths, line):
    split = folder_split(str(fill(tmp_path, *paths)), ['a', 'b'])
    assert (split.labels >= 0).any() == ('a/1.jpg' in paths)
    assert lines[0] == f'{tmp_path}: {line}'
    assert lines[1:] == ['  images in no folder: 2.jpg'] * ('2.jpg' in paths)


def test_a_folder_without_images_counts_what_it_contains(tmp_path):
    fill(tmp_path, 'a/1.mp4', 'b/2.mp4', data=b'video')
    with pytest.raises(UserError, match=r'no images in this folder; .*2 files left out: 2 \.mp4'):
        folder_split(str(tmp_path), ['a'])


def test_nested_classes_are_an_option_for_training_and_enrolling(tmp_path, lines):
    fill(tmp_path, *(f'Fruit/{name}/{number}.jpg' for name in ('Apple', 'Pear') for number in range(3)), 'Milk/1.jpg')
    data = open_training_data(config(tmp_path))
    assert data.class_names == ['Fruit', 'Milk']
    assert '  to make each of them a class: --DATASET_NESTED_CLASSES True' in lines
    data = open_training_data(config(tmp_path, DATASET__NESTED_CLASSES=True))
    assert data.class_names == ['Fruit/Apple', 'Fruit/Pear', 'Milk']
    assert data.classes.parents == [['Fruit'], ['Fruit'], []]
    split, classes = open_named_images(str(tmp_path), nested=True)
    assert classes == data.classes
    assert np.bincount(split.labels).tolist() == [3, 3, 1]
    split = folder_split(str(tmp_path), data.class_names)
    assert np.bincount(split.labels).tolist() == [3, 3, 1]


def test_nested_classes_without_effect_are_a_warning(tmp_path, lines):
    fill(tmp_path, 'Milk/1.jpg', 'Milk/2.jpg', 'Tea/1.jpg')
    open_training_data(config(tmp_path, DATASET__NESTED_CLASSES=True))
    assert any('DATASET.NESTED_CLASSES has no effect' in line for line in lines)


@pytest.mark.skipif(os.name == 'nt', reason='Windows allows no such names')
def test_names_that_are_not_utf8_reach_every_file(tmp_path, lines):
    fill(
        tmp_path / 'set',
        b'caf\xe9/\xff.jpg',
        b'caf\xe9/2.jpg',
        'tea/new\nline.jpg',
        'tea/2.jpg',
        b'test/caf\xe9/\xe8.jpg',
    )
    (tmp_path / 'set' / 'test').rename(tmp_path / 'test')
    cfg = config(tmp_path / 'set', DATASET__TEST_ROOT=str(tmp_path / 'test'))
    data = open_training_data(cfg)
    assert data.class_names == [r'caf\xe9', 'tea']
    test = open_test_split(cfg, data.class_names)
    assert test.names.to_pylist() == [r'caf\xe9/\xe8.jpg']
    assert test.labels.tolist() == [0]
    for split in (data.train, data.valid, test):
        for row, name in enumerate(split.names.to_pylist()):
            assert split.images.load(row).size == (24, 24)
            name.encode('utf-8')
            split.images.name(row).encode('utf-8')
        split.digest()
        write_json(tmp_path / 'names.json', split.names.to_pylist())
        split.names.validate(full=True)
    assert r'caf\xe9/\xff.jpg' in data.train.names.to_pylist() + data.valid.names.to_pylist()


def test_without_its_package_every_message_about_heic_names_it(tmp_path, lines, without_heic):
    photos = fill(tmp_path / 'photos', 'my tea/1.jpg', 'my tea/2.jpg')
    fill(
        photos,
        *(f'cola/{number}.heic' for number in range(11)),
        data=b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + b'\0' * 99,
    )
    data = open_training_data(config(photos, DATASET__VALID_FRACTION=0.0))
    assert f'{photos} (train): 11 images are HEIC; {HEIC_HINT}' in lines
    assert data.train.heic_hint == f'; {HEIC_HINT}'

    def first_batch(**changes):
        cfg = config(photos, DATASET__VALID_FRACTION=0.0, **changes)
        loader = build_train_loader(cfg, data.train, data.index(), DEVICE, class_names=data.class_names)
        return list(loader.batches(0))

    with pytest.raises(UserError) as caught:
        first_batch()
    assert str(caught.value).startswith("class 'cola': none of its 11 training images can be decoded")
    assert str(caught.value).endswith(HEIC_HINT)
    with pytest.raises(UserError) as caught:
        first_batch(DATASET__ON_BAD_IMAGE='raise')
    assert HEIC_HINT in str(caught.value)

    bad = BadImages(RunFolder(tmp_path / 'run'), lambda row: f'{row}', 13, 0.1)
    with pytest.raises(TooManyBadImages) as caught:
        bad.add([(row, f'a HEIC image; {HEIC_HINT}') for row in range(11)])
    assert str(caught.value).endswith(HEIC_HINT)

    split = AuditSplit('train', 'x', data.train.images, data.train.names, data.train.labels, 2, 64)
    report = audit_splits([split], min_side=1, near_distance=5, few=1, num_workers=0)
    assert f'11 unreadable images are HEIC; {HEIC_HINT}' in describe_audit(report, tmp_path, 0)


@pytest.mark.process
def test_with_its_package_heic_is_read_and_counted_as_heic(tmp_path, lines):
    pytest.importorskip('pillow_heif').register_heif_opener()
    fill(tmp_path, 'a/1.heic', 'a/2.HEIF', 'b/no extension', data=photo('HEIF'))
    data = open_training_data(config(tmp_path, DATASET__VALID_FRACTION=0.0))
    assert data.class_names == ['a', 'b']
    assert data.train.heic_hint == ''
    assert not [line for line in lines if HEIC_HINT in line]
    split = AuditSplit('train', 'x', data.train.images, data.train.names, data.train.labels, 2, 64)
    report = audit_splits([split], min_side=1, near_distance=5, few=1, num_workers=0)
    assert report.split_statistics()['train']['sizes']['formats'] == {'HEIC': 3}


def test_found_images_are_opened_by_worker_processes_under_their_own_names(tmp_path):
    import pickle

    fill(tmp_path, b'\xe9.jpg')
    split = found_split([b'\xe9.jpg'.decode('utf-8', 'surrogateescape')], np.zeros(1, np.int32), 1, 'x', str(tmp_path))
    assert split.names == pa.array([r'\xe9.jpg'], pa.large_string())
    assert pickle.loads(pickle.dumps(split.images)).load(0).size == (24, 24)


def test_classes_that_quarantine_empties_are_named(tmp_path, lines):
    fill(tmp_path / 'set', 'my tea/1.jpg', 'cola/1.jpg', 'cola/2.jpg')
    listed = [{'fpath': 'my tea/1.jpg', 'split': 'train', 'reason': 'x'}]
    write_json(tmp_path / 'quarantine.json', {'images': listed})
    quarantine = str(tmp_path / 'quarantine.json')
    open_training_data(config(tmp_path / 'set', DATASET__VALID_FRACTION=0.0, DATASET__QUARANTINE=quarantine))
    assert lines[-1] == f'{quarantine}: 1 class has no training image left: my tea'


@pytest.mark.parametrize(
    ('names', 'example'),
    [
        (['4.00638E+12', 'cola'], '4.00638E+12'),
        (['4,00638E+12'], '4,00638E+12'),
        (['4e+12', '12'], '4e+12'),
        (['1234567890123450', '9876543210123400'], '1234567890123450'),
        (['4006381333931', '4006381333948', '00012345'], ''),
        (['1234567890123456', '9876543210123400'], ''),
        (['Formula E+3', '5E10', 'E+12', '12E+', '1E', '1234567890123450'], ''),
    ],
)
def test_product_codes_that_a_spreadsheet_has_rounded_are_a_warning(tmp_path, lines, names, example):
    fill(tmp_path, *(f'{name}/1.jpg' for name in names))
    open_training_data(config(tmp_path, DATASET__VALID_FRACTION=0.0))
    rounded = [line for line in lines if 'a spreadsheet has rounded' in line]
    assert len(rounded) == bool(example)
    if example:
        assert f'({example}' in rounded[0]
        assert 'different products may share one; format the column as text and export it again' in rounded[0]
    (tmp_path / 'list.csv').write_text('path,label\n' + ''.join(f'"{name}/1.jpg","{name}"\n' for name in names))
    converted = convert_csv(tmp_path / 'list.csv')
    assert [f'{tmp_path} (train): {warning}' for warning in converted.warnings] == rounded
    # Nor are they lost where the files were converted before.
    write_converted(converted, tmp_path)
    lines.clear()
    open_training_data(config(tmp_path))
    assert sum('a spreadsheet has rounded' in line for line in lines) == bool(example)


def test_a_validation_file_replaces_the_images_that_are_held_out(tmp_path):
    """Named with class folders, it was ignored; its classes may be listed in another order."""
    entries = []
    for label, name in enumerate(('pear', 'fig')):
        for number in range(4):
            path = tmp_path / 'photos' / name / f'{number}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo())
        entries.append({'category_id': label, 'fpath': f'{name}/3.jpg'})
    file = tmp_path / 'valid.json'
    write_json(file, {'annotations': entries, 'num_classes': 2})
    write_json(tmp_path / 'classes.json', {'names': ['pear', 'fig']})
    data = open_training_data(config(tmp_path / 'photos', DATASET__VALID_JSON=str(file)))
    assert data.class_names == ['fig', 'pear']
    assert (len(data.train), data.valid.names.to_pylist()) == (8, ['pear/3.jpg', 'fig/3.jpg'])
    assert data.valid.labels.tolist() == [1, 0]
    write_json(file, {'annotations': entries, 'num_classes': 3})
    with pytest.raises(UserError, match=r'num_classes 2, but .*valid.json has 3'):
        open_training_data(config(tmp_path / 'photos', DATASET__VALID_JSON=str(file)))


def test_the_source_of_the_validation_images_is_logged(tmp_path, lines):
    fill(tmp_path / 'given', 'train/cola/1.jpg', 'train/tea/2.jpg', 'Valid/cola/3.jpg')
    fill(tmp_path / 'held_out', 'cola/1.jpg', 'cola/2.jpg', 'tea/3.jpg')
    for name in ('given', 'held_out'):
        open_training_data(config(tmp_path / name))
    assert f'2 images for training, 1 for validation ({tmp_path / "given" / "Valid"})' in lines
    assert '2 images for training, 1 for validation (DATASET.VALID_FRACTION 0.1)' in lines
