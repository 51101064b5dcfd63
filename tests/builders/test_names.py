"""Data sets whose names differ in the Unicode form only are the same data set, for every reader of names."""

import json
import logging
import shutil
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib.builders import data as builders
from lib.builders.data import open_named_images, open_training_data, open_valid_split
from lib.builders.model import class_names, finetuned_model, new_model
from lib.builders.training_data import without_quarantined
from lib.config.yaml_text import as_node
from lib.dataset.annotations import read_classes
from lib.errors import UserError
from lib.runtime.device import pick_device
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from lib.trainer.checkpointing.state import Checkpoint, TrainingSet, TrainProgress
from tests.defaults import DEFAULTS

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != 'linux', reason='other file systems compare names under NFC themselves'),
]
# In the order of their composed forms; decomposed, the second is before the first, and the last before the third.
CLASSES = ['cafz', 'caf\u00e9', 'zz', '\u00c4pfel', '\u1e69', '\ud55c\uae00']
FILES = [f'{stem}{number}.jpg' for stem in ('a', '\u00e9', 'f') for number in (2, 10)]
FORMS = ['NFC', 'NFD']


def spell(form, text):
    return unicodedata.normalize(form, text)


def composed(paths):
    return [unicodedata.normalize('NFC', path) for path in paths]


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp('photo') / 'a.jpg'
    Image.new('RGB', (8, 8), 'red').save(path)
    return path


def class_folders(root, photo, form='NFC', of_file='', classes=CLASSES):
    for name in classes:
        folder = root / spell(form, name)
        folder.mkdir(parents=True)
        for file in FILES:
            shutil.copyfile(photo, folder / spell(of_file or form, file))
    return root


def config(root, **changes):
    values = {
        'MODEL.BACKBONE': 'res32_cifar',
        'INPUT.SIZE': 32,
        'DATASET.ROOT': str(root),
        'DATASET.VALID_FRACTION': 0.3,
    }
    return as_node(DEFAULTS | values | changes)


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, 'propagate', True)
    caplog.set_level(logging.INFO, LOGGER.name)
    return lambda level=logging.WARNING: [r.getMessage() for r in caplog.records if r.levelno >= level]


def content(split):
    return [*zip(composed(split.names.to_pylist()), split.labels.tolist(), strict=True)]


@pytest.mark.parametrize('layout', ['{}', 'train/{}'])
def test_class_folders_are_the_same_data_in_every_form(tmp_path, photo, layout):
    found = []
    for form in FORMS:
        for of_file in FORMS:
            root = tmp_path / f'{form} {of_file}'
            class_folders(root / Path(layout).parent, photo, form, of_file)
            data = open_training_data(config(root))
            found.append(
                (data.class_names, content(data.train), content(data.valid), data.train_digest(), data.valid.digest())
            )
            assert data.class_names == CLASSES
            # Paths are spelled as on the disk.
            assert all(data.train.images.read(row) for row in range(len(data.train)))
            assert {*data.train.names.to_pylist(), *data.valid.names.to_pylist()} == {
                str(path.relative_to(root)) for path in root.rglob('*.jpg')
            }
    assert all(other == found[0] for other in found)
    assert len(found[0][2]) == 2 * len(CLASSES)


def test_splits_in_different_forms(tmp_path, photo):
    class_folders(tmp_path / 'train', photo, 'NFC')
    class_folders(tmp_path / 'val', photo, 'NFD')
    data = open_training_data(config(tmp_path))
    assert data.class_names == CLASSES
    assert [CLASSES[label] for label in data.valid.labels] == [
        composed(path.split('/'))[1] for path in data.valid.names.to_pylist()
    ]
    test = builders.test_folder_split(str(tmp_path / 'val'), data.class_names)
    assert test.labels.tolist() == data.valid.labels.tolist()
    assert (
        builders.test_folder_split(str(tmp_path / 'train'), data.class_names).labels.tolist()
        == data.train.labels.tolist()
    )


def test_two_folders_of_one_class_are_merged(tmp_path, photo, log):
    plain = open_training_data(config(class_folders(tmp_path / 'plain', photo, classes=['caf\u00e9'])))
    for number, file in enumerate(FILES):
        folder = tmp_path / 'mixed' / spell(FORMS[number % 2], 'caf\u00e9')
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, folder / file)
    mixed = open_training_data(config(tmp_path / 'mixed'))
    assert (content(mixed.train), mixed.valid.digest()) == (content(plain.train), plain.valid.digest())
    assert any("one class, though spelled in two Unicode forms: 'caf" in line for line in log(logging.INFO))
    class_folders(tmp_path / 'all', photo, 'NFC')
    class_folders(tmp_path / 'all', photo, 'NFD', classes=CLASSES[1:2])
    data = open_training_data(config(tmp_path / 'all', **{'DATASET.VALID_FRACTION': 0.0}))
    assert data.class_names == CLASSES
    assert np.bincount(data.train.labels).tolist() == [6, 12, 6, 6, 6, 6]
    assert len(set(data.train.names.to_pylist())) == 42


@pytest.mark.parametrize('form', FORMS)
def test_annotation_files(tmp_path, photo, form, log):
    class_folders(tmp_path, photo, form)
    paths = {'train': [], 'val': []}
    for label, name in enumerate(CLASSES):
        for number, file in enumerate(FILES):
            other = 'NFD' if number % 2 else 'NFC'
            paths['train'].append({'category_id': label, 'fpath': f'{spell(other, name)}/{spell(form, file)}'})
    paths['val'] = [
        {**entry, 'fpath': spell('NFD', entry['fpath']).replace('/', '\\')} for entry in paths['train'][:: len(FILES)]
    ]
    for split, entries in paths.items():
        text = json.dumps({'annotations': entries, 'num_classes': len(CLASSES)})
        (tmp_path / f'converted_{split}.json').write_text(text, encoding='utf-16')
    (tmp_path / 'classes.json').write_text(json.dumps({'names': [spell(form, name) for name in CLASSES]}))
    data = open_training_data(config(tmp_path))
    assert data.class_names == read_classes(tmp_path / 'classes.json', len(CLASSES)).names == CLASSES
    assert all(data.train.images.read(row) for row in range(len(data.train)))
    assert data.shares_images() == len(CLASSES)
    quarantine = [{'fpath': spell('NFD', paths['train'][8]['fpath']), 'split': 'train', 'x': float('nan')}]
    (tmp_path / 'q.json').write_text(json.dumps({'images': quarantine}), encoding='utf-8-sig')
    rows = without_quarantined(data, str(tmp_path / 'q.json')).train_rows
    assert sorted({*range(len(data.train))} - {*rows.tolist()}) == [8]
    assert log() == []
    # An image that is listed in two forms is listed twice.
    paths['train'].append(
        {**paths['train'][8], 'fpath': spell('NFD' if form == 'NFC' else 'NFC', paths['train'][8]['fpath'])}
    )
    (tmp_path / 'converted_train.json').write_text(json.dumps({'annotations': paths['train'], 'num_classes': 6}))
    open_training_data(config(tmp_path))
    assert '1 entry repeats an earlier fpath: entry 36' in log()[0]


def test_new_images_for_enrolling(tmp_path, photo):
    for form in FORMS:
        split, classes = open_named_images(str(class_folders(tmp_path / form, photo, form)), nested=False)
        assert classes.names == CLASSES
        assert np.bincount(split.labels).tolist() == [len(FILES)] * len(CLASSES)


def saved(path, names, cfg, counts=None):
    """Write a checkpoint with class names as they are spelled, as earlier versions did."""
    model = new_model(cfg, len(names), pick_device('cpu', 'float32'))
    counts = np.arange(len(names)) + 1 if counts is None else counts
    training_set = TrainingSet('', counts)
    write_checkpoint(
        path, Checkpoint(model.state_dict(), config='x', progress=TrainProgress(), training_set=training_set)
    )
    stored = torch.load(path, weights_only=True)
    torch.save(stored | {'class_names': names, 'class_parents': [[spell('NFD', 'Obst \u00e0')] for _ in names]}, path)
    return read_checkpoint(path)


def test_rows_of_a_checkpoint_are_matched_by_name(tmp_path):
    cfg = config(tmp_path)
    decomposed = sorted(spell('NFD', name) for name in CLASSES)
    checkpoint = saved(tmp_path / 'a.pth', decomposed, cfg)
    assert class_names(checkpoint) == composed(decomposed)
    assert checkpoint.training_set.class_parents == [['Obst \u00e0']] * len(CLASSES)
    assert class_names(checkpoint) != CLASSES
    names = ['new', *CLASSES]
    model, new = finetuned_model(checkpoint, cfg, pick_device('cpu', 'float32'), names)
    assert new == ['new']
    for row, name in enumerate(names[1:], 1):
        old = decomposed.index(spell('NFD', name))
        assert torch.equal(model.classifier.weight[row], checkpoint.state_dict['classifier.weight'][old])


def test_a_class_that_was_two_has_the_rows_of_the_first(tmp_path):
    cfg = config(tmp_path)
    checkpoint = saved(tmp_path / 'a.pth', ['caf\u00e9', 'tea', 'cafe\u0301'], cfg)
    model, new = finetuned_model(checkpoint, cfg, pick_device('cpu', 'float32'), ['caf\u00e9', 'tea'])
    assert new == []
    assert torch.equal(model.classifier.weight, checkpoint.state_dict['classifier.weight'][:2])


def test_labels_follow_the_order_of_a_model(tmp_path, photo, log):
    cfg = config(class_folders(tmp_path, photo, 'NFD'))
    plain = open_valid_split(cfg)
    turned = CLASSES[::-1]
    split = open_valid_split(cfg, turned)
    assert [turned[label] for label in split.labels] == [CLASSES[label] for label in plain.labels]
    assert np.array_equal(split.index().class_counts, plain.index().class_counts[::-1])
    data = open_training_data(cfg)
    again = data.in_class_order(turned)
    assert [turned[label] for label in again.train.labels] == [CLASSES[label] for label in data.train.labels]
    assert again.class_names == turned
    # Other classes are not reordered: they may have been renamed.
    assert not [line for line in log() if 'unknown to the model' in line]
    assert open_valid_split(cfg, [*turned[:-1], 'other']).labels.tolist() == plain.labels.tolist()
    assert [line for line in log() if f'1 class is unknown to the model: {turned[-1]}' in line]
    unlabeled = replace(plain, labels=np.full(len(plain), -1, np.int32))
    assert (replace(data, train=unlabeled).in_class_order(turned).train.labels == -1).all()


LOOK_ALIKE = 'Milk\u200b'


def test_invisible_characters_are_a_warning_everywhere(tmp_path, photo, log):
    class_folders(tmp_path / 'data', photo, classes=['Milk', LOOK_ALIKE, 'Tea'])
    open_training_data(config(tmp_path / 'data'))
    assert any("'Milk' and 'Milk\\u200b' (differ in invisible characters)" in line for line in log())
    class_folders(tmp_path / 'test', photo, classes=['Milk ', 'Tea'])
    split = builders.test_folder_split(str(tmp_path / 'test'), ['Milk', 'Tea'])
    assert sorted(set(split.labels.tolist())) == [-1, 1]
    assert any("'Milk' and 'Milk ' (differ in spaces)" in line for line in log())
    (tmp_path / 'data' / 'classes.json').write_text(json.dumps({'names': ['caf\u00e9', 'cafe\u0301']}))
    entries = [{'category_id': 0, 'fpath': 'Tea/a2.jpg'}]
    (tmp_path / 'data' / 'converted_train.json').write_text(json.dumps({'annotations': entries, 'num_classes': 2}))
    open_training_data(config(tmp_path / 'data'))
    assert any("classes with the same name: 'caf\u00e9'" in line for line in log())


def test_an_unknown_class_of_the_valid_split_is_shown_with_escapes(tmp_path, photo):
    class_folders(tmp_path / 'train', photo, classes=['Milk', 'Tea'])
    class_folders(tmp_path / 'val', photo, classes=[LOOK_ALIKE, 'Tea'])
    with pytest.raises(UserError, match=r"class 'Milk\\u200b' \(1 in all\) has no images"):
        open_training_data(config(tmp_path))
