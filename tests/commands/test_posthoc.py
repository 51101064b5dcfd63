"""The images that tools/posthoc.py uses: training images without the quarantine, and enough for the folds."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lib.commands.loaded_model import training_sample
from lib.commands.posthoc import _check_images
from lib.config.yaml_text import as_node
from lib.dataset.features import Features
from lib.errors import UserError
from tests.defaults import DEFAULTS

NUM_CLASSES, PER_CLASS = 3, 6


@pytest.fixture
def products(tmp_path):
    """An annotation file with six images per class; the images are not read."""
    names = [f'{label}/{number}.jpg' for number in range(PER_CLASS) for label in range(NUM_CLASSES)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    entries = [{'category_id': int(name[0]), 'fpath': name} for name in names]
    content = json.dumps({'annotations': entries, 'num_classes': NUM_CLASSES})
    (tmp_path / 'converted_train.json').write_text(content)
    return tmp_path


def names_of_holdout(root, quarantine='', holdout=100):
    values = DEFAULTS
    changes = {'DATASET.NAME': 'annotations', 'DATASET.ROOT': str(root), 'DATASET.QUARANTINE': str(quarantine)}
    cfg = as_node(values | changes | {'POSTHOC.HOLDOUT': holdout})
    names = [str(label) for label in range(NUM_CLASSES)]
    split = training_sample(SimpleNamespace(cfg=cfg, class_names=names, check_classes=lambda split: None))
    assert [name.as_py()[0] for name in split.names] == [str(label) for label in split.labels]
    return split.names.to_pylist()


def test_quarantined_images_are_left_out(products):
    everything = names_of_holdout(products)
    listed = ['0/1.jpg', '2/0.jpg', '2/5.jpg']
    images = [{'fpath': name, 'split': 'train', 'reason': 'blurred'} for name in listed]
    (products / 'quarantine.json').write_text(json.dumps({'images': images}))
    found = names_of_holdout(products, products / 'quarantine.json')
    assert len(everything) == NUM_CLASSES * PER_CLASS
    assert found == [name for name in everything if name not in listed]


def test_the_number_per_class_is_limited_after_the_quarantine(products):
    images = [{'fpath': f'1/{number}.jpg', 'split': 'train'} for number in range(4)]
    (products / 'quarantine.json').write_text(json.dumps({'images': images}))
    found = names_of_holdout(products, products / 'quarantine.json', holdout=2)
    assert np.unique([name[0] for name in found], return_counts=True)[1].tolist() == [2, 2, 2]
    assert {name for name in found if name[0] == '1'} == {'1/4.jpg', '1/5.jpg'}


SPLIT = SimpleNamespace(source='valid.json', heic_hint='')


def features(labels, readable):
    return Features(np.zeros((len(labels), 2), np.float32), np.array(labels), np.array(readable, bool), [])


@pytest.mark.parametrize(
    ('labels', 'readable', 'message'),
    [
        (
            [0],
            [1],
            'POSTHOC.FOLDS is 3, but valid.json has only 1 labeled image that can be decoded: --POSTHOC_FIT_SPLIT',
        ),
        ([0, 1], [1, 1], 'POSTHOC.FOLDS is 3, but valid.json has only 2 labeled images: --POSTHOC_FOLDS 2'),
        ([0, 1, 1, -1, -1], [1, 1, 0, 1, 1], 'has only 2 labeled images'),
        ([0, -1], [0, 1], 'valid.json: none of its labeled images can be decoded'),
        ([0, 1, 2, 0], [1, 1, 1, 0], ''),
    ],
)
def test_every_fold_needs_an_image(labels, readable, message):
    if not message:
        _check_images(features(labels, readable), SPLIT, 3)
        return
    with pytest.raises(UserError) as caught:
        _check_images(features(labels, readable), SPLIT, 3)
    assert message in str(caught.value)
