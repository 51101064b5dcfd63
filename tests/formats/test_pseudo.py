"""Training annotations with pseudo-labels, from annotation files as others write them."""

import json

import numpy as np
import pytest

from lib.dataset.annotations import ClassNames, read_annotations
from lib.formats.converted import ConvertedSplit
from lib.formats.pseudo import (
    PseudoEntries,
    TrainingEntries,
    are_copies,
    holds_pseudo_labels,
    read_training_entries,
    write_pseudo_labeled,
)
from lib.runtime.text import names_digest

NAMES = ClassNames(['tea', 'caf\u00e9 "x"', '<b>'], [])
KNOWN = [
    {'fpath': 'a\n"b".jpg', 'category_id': 2, 'bbox': [1, 2.50, {'source': 'pseudo'}]},
    {'category_id': 0, 'fpath': '"source":"pseudo".jpg', 'weight': 0.25, 'source': 'shop'},
    {'category_id': 1, 'fpath': 'e\u0301.jpg', 'source': ['pseudo']},
]
PSEUDO = PseudoEntries(['../new/1.jpg', '/abs/2\\3.jpg'], np.array([1, 0]), np.array([0.5, 1.0]))


@pytest.mark.parametrize('indent', [None, 2])
@pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'])
def test_known_entries_stay_as_they_are(tmp_path, indent, mark):
    path, out = tmp_path / 'train.json', tmp_path / 'out' / 'with_pseudo.json'
    content = {'info': {'year': 1e3}, 'annotations': KNOWN, 'num_classes': 3, 'licenses': []}
    path.write_bytes(mark + json.dumps(content, indent=indent).encode())
    train = read_training_entries(path)
    assert train.rows.tolist() == [0, 1, 2]
    assert write_pseudo_labeled(out, train, PSEUDO, 3, NAMES) == [out, out.with_name('classes.json')]
    written = json.loads(out.read_text(encoding='utf-8'))
    assert written['annotations'][:3] == KNOWN
    assert written['annotations'][3:] == [
        {'category_id': 1, 'fpath': '../new/1.jpg', 'source': 'pseudo', 'weight': 0.5},
        {'category_id': 0, 'fpath': '/abs/2\\3.jpg', 'source': 'pseudo', 'weight': 1.0},
    ]
    digest = {'classes_digest': names_digest(NAMES.names)}
    assert {key: value for key, value in written.items() if key != 'annotations'} == {
        'info': {'year': 1e3}, 'num_classes': 3, 'licenses': [], **digest
    }  # fmt: skip
    assert b'2.5, {' in out.read_bytes() or indent
    read = read_annotations(out)
    assert (read.labels.tolist(), read.weights.tolist()) == ([2, 0, 1, 1, 0], [1, 0.25, 1, 0.5, 1])
    assert (holds_pseudo_labels(out), holds_pseudo_labels(path)) == (True, False)


def test_another_round_replaces_them(tmp_path):
    path = tmp_path / 'train.json'
    path.write_text(json.dumps({'annotations': KNOWN, 'num_classes': 3}))
    write_pseudo_labeled(path, read_training_entries(path), PSEUDO, 3, None)
    before = path.read_bytes()
    train = read_training_entries(path)
    assert train.rows.tolist() == [0, 1, 2]
    write_pseudo_labeled(path, train, PSEUDO, 3, None)
    assert path.read_bytes() == before
    assert not (tmp_path / 'classes.json').exists()


def test_class_folders_get_a_valid_file(tmp_path):
    train = TrainingEntries(ConvertedSplit(['a.jpg', 'b.jpg'], np.array([0, 1])), {}, np.arange(2))
    valid = ConvertedSplit(['c.jpg'], np.array([2]))
    files = write_pseudo_labeled(tmp_path / 'x.json', train, PSEUDO, 3, NAMES, valid)
    assert [file.name for file in files] == ['x.json', 'classes.json', 'x_val.json']
    assert read_annotations(files[0]).labels.tolist() == [0, 1, 1, 0]
    assert read_annotations(files[2]).classes_digest == read_annotations(files[0]).classes_digest != ''


def test_copies(tmp_path):
    random = np.random.default_rng(0)
    contents = {name: random.bytes(9000) for name in 'abc'} | {'d': b'', 'e': b'short'}
    paths = []
    for name, content in [*contents.items(), ('a2', contents['a']), ('b2', contents['b'][:-1] + b'!')]:
        (tmp_path / name).write_bytes(content)
        paths.append(str(tmp_path / name))
    known = tmp_path / 'known'
    known.write_bytes(contents['c'])
    listed = [str(known), str(tmp_path / 'missing'), str(tmp_path)]
    # b2 differs from b in its last byte only.
    assert are_copies(paths, iter(listed)).tolist() == [False, False, True, False, False, True, False]
    assert are_copies([], iter(listed)).tolist() == []
    assert are_copies([str(tmp_path / 'missing')], iter(listed)).tolist() == [False]
