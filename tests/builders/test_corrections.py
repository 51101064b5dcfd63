"""DATASET.CORRECTIONS for class folders with any names, and for arrays; beside DATASET.QUARANTINE."""

import logging

import numpy as np
import pytest

from lib.builders.cache_key import split_key
from lib.builders.data import open_training_data, open_uncorrected_valid_split, open_valid_split
from lib.builders.training_data import TrainingData
from lib.config.yaml_text import as_node
from lib.dataset.corrections import Decision, write_decisions
from lib.errors import UserError
from lib.runtime.files import write_json
from lib.runtime.log import LOGGER
from tests.defaults import DEFAULTS
from tests.small_cifar import torchvision_checksums, write_small_cifar

CLASSES = ['<b>Tea', "Mo\u0308bel's", '"Milk"', '\U0001f600 \u202egnp', 'relabel']


def config(root, **changes):
    changes = {name.replace('__', '.'): str(value) for name, value in changes.items()}
    return as_node(DEFAULTS | {'NAME': 'x', 'DATASET.NAME': 'annotations', 'DATASET.ROOT': str(root)} | changes)


@pytest.fixture
def lines(monkeypatch):
    level, found = LOGGER.level, list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(LOGGER, 'handlers', [handler])
    LOGGER.setLevel(logging.INFO)  # which also forgets what it knows about levels
    yield found
    LOGGER.setLevel(level)


@pytest.fixture
def folder(tmp_path):
    """Class folders with hostile names, of which no file is opened."""
    root = tmp_path / 'photos'
    for kind, number in (('train', 4), ('val', 2)):
        for name in CLASSES:
            (root / kind / name).mkdir(parents=True)
            for image in range(number):
                (root / kind / name / f'e\u0301 <i>{image}.jpg').write_bytes(b'')
    return root


def label_names(data: TrainingData, split=None) -> dict[str, str]:
    split = split or data.train
    return dict(zip(split.names.to_pylist(), [data.class_names[label] for label in split.labels.tolist()], strict=True))


def test_class_folders_with_any_names(folder, tmp_path, lines):
    plain = open_training_data(config(folder))
    before = label_names(plain)
    paths = list(before)
    verdicts = ['relabel', 'drop', 'weight', 'keep', 'unsure']
    decisions = []
    for number, path in enumerate(paths[::2]):
        action = verdicts[number % 5]
        to = plain.class_names[number % len(CLASSES)] if action == 'relabel' else ''
        weight = 0.5 if action == 'weight' else None
        decisions.append(Decision(path.replace('\u00e9', 'e\u0301'), action, before[path], to, weight))
    write_decisions(tmp_path / 'd.json', decisions)
    cfg = config(folder, DATASET__CORRECTIONS=tmp_path / 'd.json')
    data = open_training_data(cfg)
    expected = {**before, **{paths[2 * n]: one.to for n, one in enumerate(decisions) if one.action == 'relabel'}}
    assert label_names(data) == expected
    dropped = [2 * n for n, one in enumerate(decisions) if one.action == 'drop']
    weighted = [2 * n for n, one in enumerate(decisions) if one.action == 'weight']
    assert data.dropped.tolist() == dropped
    assert data.train_rows.tolist() == sorted({*range(len(paths))} - {*dropped})
    assert np.flatnonzero(data.train.weights != 1).tolist() == weighted
    names = [expected[path] for row, path in enumerate(paths) if row not in dropped]
    assert data.original_class_counts().tolist() == [names.count(name) for name in data.class_names]
    assert data.index().class_counts.tolist() == data.original_class_counts().tolist()
    assert label_names(data, data.valid) == label_names(plain, plain.valid)
    assert data.train_digest() != plain.train_digest()
    # Features depend on the images only.
    assert split_key(data.train, with_labels=False) == split_key(plain.train, with_labels=False)
    assert split_key(data.train) != split_key(plain.train)
    assert data.corrections['train']['counts']['drop'] == len(dropped)
    assert any(f'{len(dropped)} images dropped' in line for line in lines)
    # Tools that read every image get the corrected labels.
    every = open_training_data(cfg, quarantine=False)
    assert every.train_rows is None
    assert label_names(every) == expected


def test_valid_decisions(folder, tmp_path):
    plain = open_training_data(config(folder))
    before = label_names(plain, plain.valid)
    first, second, third = list(before)[:3]
    decisions = [
        Decision(first, 'drop', before[first]),
        Decision(second, 'relabel', before[second], to=plain.class_names[-1]),
        Decision(third, 'keep', before[third]),
    ]
    write_decisions(tmp_path / 'v.json', decisions, split='valid')
    cfg = config(folder, DATASET__VALID_CORRECTIONS=tmp_path / 'v.json')
    data = open_training_data(cfg)
    del before[first]
    before[second] = plain.class_names[-1]
    assert label_names(data, data.valid) == before
    assert label_names(data, open_valid_split(cfg, data.class_names)) == before
    # A model may have the classes in another order.
    turned = data.class_names[::-1]
    valid = open_valid_split(cfg, turned)
    assert [turned[label] for label in valid.labels.tolist()] == list(before.values())
    split, rows = open_uncorrected_valid_split(cfg, turned)
    assert rows.tolist() == [0, 1]
    assert [turned[label] for label in split.labels.tolist()] == list(label_names(plain, plain.valid).values())
    assert label_names(data) == label_names(plain)
    for key in ('DATASET__CORRECTIONS', 'DATASET__VALID_CORRECTIONS'):
        write_decisions(tmp_path / 'o.json', decisions, split='test')
        with pytest.raises(UserError, match='about the test split'):
            open_training_data(config(folder, **{key: tmp_path / 'o.json'}))


def test_with_quarantine_and_emptied_classes(folder, tmp_path, lines):
    before = label_names(open_training_data(config(folder)))
    tea = [path for path, name in before.items() if name == '<b>Tea']
    write_decisions(tmp_path / 'd.json', [Decision(path, 'drop', before[path]) for path in tea[:3]])
    quarantined = [{'fpath': tea[row], 'split': 'train'} for row in (3, 0)]
    write_json(tmp_path / 'q.json', {'images': quarantined})
    cfg = config(folder, DATASET__CORRECTIONS=tmp_path / 'd.json', DATASET__QUARANTINE=tmp_path / 'q.json')
    data = open_training_data(cfg)
    kept = [path for path in before if path not in tea]
    assert [data.train.names[row].as_py() for row in data.train_rows.tolist()] == kept
    assert lines[-1] == f'{tmp_path / "q.json"}: 1 class has no training image left: <b>Tea'
    label = data.class_names.index('<b>Tea')
    assert data.original_class_counts()[label] == 1  # quarantine does not count
    write_decisions(tmp_path / 'd.json', [Decision(path, 'relabel', before[path], to='relabel') for path in tea])
    open_training_data(config(folder, DATASET__CORRECTIONS=tmp_path / 'd.json'))
    assert lines[-1] == f'{tmp_path / "d.json"}: 1 class has no training image left: <b>Tea'


def test_stale_decisions_are_counted_and_named(folder, tmp_path, lines):
    gone = [Decision(f'{number}.jpg', 'drop', 'relabel') for number in range(5)]
    write_decisions(tmp_path / 'd.json', gone)
    data = open_training_data(config(folder, DATASET__CORRECTIONS=tmp_path / 'd.json'))
    assert data.train_rows is None
    assert f'{tmp_path / "d.json"}: 0 labels corrected, 0 images dropped' in lines
    assert lines[-1] == (
        f'{tmp_path / "d.json"}: 5 decisions are stale, and not applied: 0.jpg (no such image), 1.jpg (no such image), '
        '2.jpg (no such image), and 2 more'
    )


def test_arrays(tmp_path, monkeypatch):
    from torchvision import datasets

    write_small_cifar(tmp_path)
    for name, value in torchvision_checksums(tmp_path).items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    plain = open_training_data(config(tmp_path, DATASET__NAME='cifar10_lt'))
    before = label_names(plain)
    to = next(name for name in plain.class_names if name != before['train image 1'])
    write_decisions(tmp_path / 'd.json', [Decision('train image 1', 'relabel', before['train image 1'], to=to)])
    data = open_training_data(config(tmp_path, DATASET__NAME='cifar10_lt', DATASET__CORRECTIONS=tmp_path / 'd.json'))
    assert label_names(data) == {**before, 'train image 1': to}
