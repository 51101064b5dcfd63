"""decisions.json about photos without labels, as a source of annotations and of new classes."""

import json

import numpy as np
import pytest
from PIL import Image

from lib.builders.data import open_named_images
from lib.errors import UserError
from lib.formats.decisions import convert_decisions
from lib.formats.write import append_converted, write_converted


@pytest.fixture
def decisions(tmp_path):
    """A file, as the review page exports it, with relative and absolute paths."""
    (tmp_path / 'shots').mkdir()
    for number in range(5):
        Image.new('RGB', (20, 10)).save(tmp_path / f'shots/{number}.jpg')
    judged = [
        ('shots/0.jpg', 'relabel', 'tea'),
        (f'{tmp_path}/shots/1.jpg', 'relabel', 'Café'),
        ('shots/2.jpg', 'drop', ''),
        ('shots/3.jpg', 'unsure', ''),
        ('shots/4.jpg', 'relabel', 'Cafe\u0301'),  # the same name
        ('shots/0.jpg', 'relabel', 'milk'),  # the last decision counts
    ]
    entries = [{'fpath': fpath, 'action': action, 'label': '', 'to': to} for fpath, action, to in judged]
    path = tmp_path / 'decisions.json'
    path.write_text(json.dumps({'split': 'unlabeled', 'decisions': entries}))
    return path


def test_photos_with_a_class_are_a_training_split(decisions, tmp_path):
    converted = convert_decisions(decisions)
    assert converted.names == ['Café', 'milk']
    assert dict(converted.splits['train']) == {
        'shots/0.jpg': 1, f'{tmp_path}/shots/1.jpg': 0, 'shots/4.jpg': 0,
    }  # fmt: skip
    assert converted.warnings == ['2 photos without a class (dropped or unsure)']
    out = tmp_path / 'out'
    write_converted(converted, out)
    annotations = json.loads((out / 'converted_train.json').read_text())['annotations']
    assert [entry['fpath'] for entry in annotations] == [
        '../shots/0.jpg', f'{tmp_path}/shots/1.jpg', '../shots/4.jpg',
    ]  # fmt: skip
    # Again with another photo: only that is added, with its new class.
    content = json.loads(decisions.read_text())
    content['decisions'].append({'fpath': 'shots/2.jpg', 'action': 'relabel', 'label': '', 'to': 'a new tea'})
    decisions.write_text(json.dumps(content))
    append_converted(convert_decisions(decisions), out)
    written = json.loads((out / 'converted_train.json').read_text())
    assert len(written['annotations']) == 4
    assert json.loads((out / 'classes.json').read_text())['names'] == ['Café', 'milk', 'a new tea']


def test_photos_with_a_class_are_named_images_for_enrollment(decisions):
    split, classes = open_named_images(str(decisions), nested=False)
    assert classes.names == ['Café', 'milk']
    assert np.array_equal(split.labels, [1, 0, 0])
    assert split.images.load(1).size == (20, 10)


def test_mistakes(decisions):
    content = json.loads(decisions.read_text())
    decisions.write_text(json.dumps({**content, 'split': 'train'}))
    with pytest.raises(UserError, match='about the train split, not about the unlabeled split'):
        convert_decisions(decisions)
    decisions.write_text(json.dumps({**content, 'decisions': content['decisions'][2:4]}))
    with pytest.raises(UserError, match='no photo was given a class'):
        convert_decisions(decisions)
