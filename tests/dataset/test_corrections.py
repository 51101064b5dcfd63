"""decisions.json: reading, writing, and what the decisions change, against a plain loop over the images."""

import json
import random
import unicodedata

import numpy as np
import pyarrow as pa
import pytest

from lib.dataset.corrections import ACTIONS, Decision, apply_decisions, read_decisions, write_decisions
from lib.dataset.paths import comparable_paths
from lib.errors import UserError

CLASSES = ['Milk', 'Caf\u00e9 "1 l"', '<b>Tea</b>', 'none']


def apply(decisions, names, labels, classes=CLASSES):
    names = comparable_paths(pa.array(names, pa.large_string()))
    return apply_decisions(decisions, names, np.array(labels, np.int32), classes, 'decisions.json')


def write(tmp_path, content):
    file = tmp_path / 'decisions.json'
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_what_is_written_is_read(tmp_path):
    decisions = [
        Decision('a "b"\n\\.jpg', 'relabel', 'Milk', to='<b>Tea</b>', by='review'),
        Decision('caf\u00e9.jpg', 'weight', '', weight=0.25, by='clean'),
        *(Decision(f'{action}.jpg', action, 'Milk') for action in ('keep', 'drop', 'unsure')),
    ]
    file = tmp_path / 'folder' / 'decisions.json'
    write_decisions(file, decisions, split='valid')
    assert read_decisions(file, 'valid') == decisions
    tree = json.loads(file.read_text())
    assert tree['split'] == 'valid'
    assert tree['decisions'][2] == {'fpath': 'keep.jpg', 'action': 'keep', 'label': 'Milk'}
    before = file.read_bytes()
    write_decisions(file, iter(decisions), split='valid')
    assert file.read_bytes() == before
    write_decisions(file, [])
    assert read_decisions(file) == []


ENTRY = {'fpath': 'a.jpg', 'action': 'keep', 'label': 'Milk'}


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('', 'not valid JSON'),
        ('[' * 100_000, ''),
        ([], 'must be {"split": "train", "decisions"'),
        ({'images': []}, 'must be {"split": "train", "decisions"'),
        ({'decisions': [{**ENTRY, 'action': 'delete'}]}, "'delete'"),
        ({'decisions': [{'fpath': 'a.jpg', 'action': 'drop'}]}, 'label'),
        ({'decisions': [{**ENTRY, 'fpath': 3}]}, 'decisions[0].fpath'),
        ({'decisions': [ENTRY, {**ENTRY, 'action': 'relabel'}]}, 'decisions[1]: relabel needs "to"'),
        ({'decisions': [{**ENTRY, 'action': 'weight'}]}, 'decisions[0]: weight needs "weight"'),
        ({'decisions': [{**ENTRY, 'action': 'weight', 'weight': 0}]}, 'weight'),
        ({'decisions': [{**ENTRY, 'action': 'weight', 'weight': 1.5}]}, 'weight'),
        ('{"decisions": [{"fpath": "a", "action": "weight", "label": "b", "weight": NaN}]}', 'weight'),
        ('{"decisions": [{"fpath": "\\ud800", "action": "keep", "label": "b"}]}', 'not Unicode'),
        ({'split': 'valid', 'decisions': []}, 'about the valid split, not about the train split'),
    ],
)
def test_bad_files(tmp_path, content, words):
    file = write(tmp_path, content)
    with pytest.raises(UserError) as error:
        read_decisions(file)
    assert str(error.value).startswith(f'{file}:')
    assert words in str(error.value)
    assert '\n' not in str(error.value)


def test_a_file_that_names_no_split_is_about_training_images(tmp_path):
    file = write(tmp_path, {'decisions': [ENTRY], 'more': 1})
    assert len(read_decisions(file)) == 1
    with pytest.raises(UserError, match='about the train split, not about the valid split'):
        read_decisions(file, 'valid')
    with pytest.raises(UserError, match=r'no such file; clean\.html'):
        read_decisions(tmp_path / 'no.json')


def applied_in_plain_python(decisions, names, labels):
    """Return (label, dropped, weight) of each image, and the numbers of decisions already in effect and stale."""

    def form(text):
        return unicodedata.normalize('NFC', text.replace('\\', '/'))

    by_image, num_already, num_stale = {}, 0, 0
    for decision in decisions:
        by_image[form(decision.fpath), unicodedata.normalize('NFC', decision.label)] = decision
    result = []
    for name, label in zip(names, labels, strict=True):
        decision = by_image.get((form(name), CLASSES[label]))
        to = label
        if decision and decision.action == 'relabel' and decision.to in CLASSES:
            to = CLASSES.index(decision.to)
        is_drop, is_weight = (decision is not None and decision.action == action for action in ('drop', 'weight'))
        result.append((to, is_drop, decision.weight if is_weight else 1.0))
    found = {(form(name), CLASSES[label]) for name, label in zip(names, labels, strict=True)}
    for (name, label), decision in by_image.items():
        to = decision.to if decision.action == 'relabel' else None
        if to is not None and (name, to) in found and ((name, label) not in found or to == label):
            num_already += 1
        elif (name, label) not in found or (to is not None and to not in CLASSES):
            num_stale += 1
    return result, num_already, num_stale


def test_changes_are_those_of_a_plain_loop():
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    rng = random.Random(seed)
    for _ in range(200):
        parts = (['', 'a/', 'b\\'], ['\u00e9', 'e\u0301', '\ud55c', 'x'], '012345')
        names = [''.join(map(rng.choice, parts)) for _ in range(rng.randrange(1, 25))]
        labels = [rng.randrange(len(CLASSES)) for _ in names]
        decisions, seen = [], set()
        for _ in range(rng.randrange(20)):
            name = rng.choice([*names, 'gone.jpg'])
            action = rng.choice(ACTIONS)
            label = rng.choice([*CLASSES, 'Cafe\u0301 "1 l"', 'gone'])
            key = unicodedata.normalize('NFC', name.replace('\\', '/')), unicodedata.normalize('NFC', label)
            if key in seen:
                continue
            seen.add(key)
            to = rng.choice([*CLASSES, 'gone']) if action == 'relabel' else ''
            weight = rng.choice([0.5, 0.25, 1.0]) if action == 'weight' else None
            decisions.append(Decision(name, action, label, to, weight))
        repeated = rng.sample(decisions, len(decisions) // 2)
        changes = apply([*decisions, *repeated], names, labels)
        expected, num_already, num_stale = applied_in_plain_python(decisions, names, labels)
        weights = np.ones(len(names))
        weights[changes.weighted] = changes.weights
        dropped = np.isin(np.arange(len(names)), changes.dropped)
        assert list(zip(changes.labels.tolist(), dropped.tolist(), weights.tolist(), strict=True)) == expected
        assert (changes.counts['already'], changes.counts['stale']) == (num_already, num_stale)
        assert changes.counts['drop'] == len(changes.dropped)
        assert len(changes.stale) == min(3, num_stale)


def test_stale_decisions_are_named():
    decisions = [
        Decision('a.jpg', 'relabel', 'Milk', to='<b>Tea</b>'),
        Decision('b.jpg', 'drop', '<b>Tea</b>'),
        Decision('gone\n.jpg', 'drop', 'Milk'),
        Decision('c.jpg', 'relabel', 'Milk', to='Coffee'),
        Decision('d.jpg', 'relabel', 'Milk', to='none'),
    ]
    changes = apply(decisions, ['a.jpg', 'b.jpg', 'c.jpg', 'd.jpg'], [0, 0, 0, 3])
    assert changes.labels.tolist() == [2, 0, 0, 3]
    assert changes.stale == [
        "b.jpg (its label is 'Milk', judged was '<b>Tea</b>')",
        'gone\\n.jpg (no such image)',
        "c.jpg (no class is named 'Coffee')",
    ]
    assert changes.counts == {
        'keep': 0, 'relabel': 1, 'drop': 0, 'unsure': 0, 'weight': 0, 'already': 1, 'stale': 3,
    }  # fmt: skip


def test_an_image_listed_under_two_classes_has_a_decision_for_each():
    decisions = [Decision('a.jpg', 'relabel', 'Milk', to='none'), Decision('a.jpg', 'keep', '<b>Tea</b>')]
    changes = apply(decisions, ['a.jpg', 'a.jpg'], [0, 2])
    assert changes.labels.tolist() == [3, 2]


@pytest.mark.parametrize(
    ('first', 'second', 'words'),
    [
        (('drop',), ('keep',), 'drop and keep contradict'),
        (('relabel', 'none'), ('relabel', '<b>Tea</b>'), "relabel to 'none' and relabel to '<b>Tea</b>' contradict"),
        (('relabel', 'none'), ('drop',), "relabel to 'none' and drop contradict"),
        (('weight', '', 0.5), ('weight', '', 0.25), 'weight 0.5 and weight 0.25 contradict'),
    ],
)
def test_contradictions(first, second, words):
    about_one = [('e\u0301.jpg', first), ('\u00e9.jpg', second)]
    decisions = [
        Decision('b.jpg', 'keep', 'Milk'),
        *(Decision(name, verdict[0], 'Milk', *verdict[1:]) for name, verdict in about_one),
        Decision('b.jpg', 'drop', 'Milk'),
    ]
    with pytest.raises(UserError) as error:
        apply(decisions, ['b.jpg', '\u00e9.jpg'], [0, 0])
    assert str(error.value) == f'decisions.json: e\u0301.jpg: {words} each other; remove one of these decisions'


def test_classes_that_share_a_name():
    classes = ['Milk', 'Tea', 'Milk']
    # The label that was judged is known by the image.
    changes = apply([Decision('a.jpg', 'relabel', 'Milk', to='Tea')], ['a.jpg', 'b.jpg'], [2, 2], classes)
    assert changes.labels.tolist() == [1, 2]
    with pytest.raises(UserError, match="relabels to 'Milk', the name of several classes"):
        apply([Decision('a.jpg', 'relabel', 'Tea', to='Milk')], ['a.jpg'], [1], classes)


def test_unlabeled_images_and_no_decisions():
    assert apply([Decision('a.jpg', 'drop', 'none')], ['a.jpg', 'b.jpg'], [-1, 3]).counts['stale'] == 1
    changes = apply([], ['a.jpg'], [1])
    assert changes.labels.tolist() == [1]
    assert not len(changes.dropped)
