"""YAML to flat keys and back; no code in YAML is executed."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.config.defaults import KEYS, TREE
from lib.config.yaml_text import as_node, as_text, as_values, parse_config_text, read_config_file
from lib.errors import UserError

DEFAULTS = {name: key.default for name, key in KEYS.items()}
# Texts that YAML would parse as another type without quotes.
MISLEADING = ('yes', 'null', '~', '1e5', '12', '1.5', '2020-01-01', ' x ', '#', 'a: b', '- a', '=')
TEXT = st.text(st.characters(exclude_categories=('Cs', 'Cc')), max_size=20)


def values_of(key):
    """Return a strategy of values that a key allows."""
    if key.choices:
        return st.sampled_from(key.choices)
    low, high = key.low, key.high

    def floats():
        return st.floats(low, high, allow_nan=False, allow_infinity=False)

    if isinstance(key.default, bool):
        return st.booleans()
    if isinstance(key.default, int):
        return st.integers(low if low is None else int(low), high if high is None else int(high))
    if isinstance(key.default, float):
        return floats()
    if isinstance(key.default, tuple):
        entries = floats() if key.default else st.integers(int(low or 0), 2**31)
        return st.lists(entries, max_size=5).map(tuple)
    return TEXT | st.sampled_from(MISLEADING)


def refused(text, unknown=None):
    with pytest.raises(UserError) as caught:
        parse_config_text(text, 'FILE', unknown)
    assert str(caught.value).startswith('FILE')
    return str(caught.value)


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({name: values_of(key) for name, key in KEYS.items()}))
def test_the_whole_tree_round_trips_through_its_text(values):
    text = as_text(as_node(values))
    found = parse_config_text(text, 'text')
    assert found == values
    assert {name: type(value) for name, value in found.items()} == {name: type(values[name]) for name in values}
    assert as_text(as_node(found)) == text


def test_node_and_values_are_inverses():
    cfg = as_node(DEFAULTS)
    assert as_values(cfg) == DEFAULTS
    assert cfg.TRAIN.BATCH_SIZE == 512
    assert cfg.SEED == 0


def test_text_is_plain_yaml_in_the_order_of_the_tree():
    text = as_text(as_node(DEFAULTS))
    tree = yaml.safe_load(text)
    assert list(tree)[:6] == list(TREE[''])
    assert list(tree)[6:] == [section for section in TREE if section]
    assert 'SCALE: [0.08, 1.0]' in text
    assert '!!' not in text


def test_sections_and_top_level_keys():
    found = parse_config_text('SEED: 3\nTRAIN: {BATCH_SIZE: 7}\nTEST:\n  TOP_K: 2', 'FILE')
    assert found == {'SEED': 3, 'TRAIN.BATCH_SIZE': 7, 'TEST.TOP_K': 2}
    assert parse_config_text('', 'FILE') == {}
    assert parse_config_text('# nothing\n', 'FILE') == {}
    assert parse_config_text('TRAIN: {}', 'FILE') == {}


def test_anchors_and_merges_are_allowed():
    text = 'TRAIN: &one\n  BATCH_SIZE: 3\nTEST:\n  <<: *one'
    assert parse_config_text(text, 'FILE') == {'TRAIN.BATCH_SIZE': 3, 'TEST.BATCH_SIZE': 3}


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('SEED: 1\nSEED: 2', ['line 2', "'SEED' is set twice"]),
        ('TRAIN:\n  BATCH_SIZE: 1\n  BATCH_SIZE: 2', ['line 3', "'BATCH_SIZE' is set twice"]),
        ('TRAIN: {}\nTRAIN: {}', ["'TRAIN' is set twice"]),
        ('TRAIN.BATCH_SIZE: 1\nTRAIN: {BATCH_SIZE: 2}', ['TRAIN.BATCH_SIZE is set twice']),
        ('TRAIN: {BATCHSIZE: 1}', ['TRAIN.BATCHSIZE is not a key', 'did you mean TRAIN.BATCH_SIZE?']),
        ('BATCH_SIZE: 1', ['BATCH_SIZE is not a key', 'did you mean', '.BATCH_SIZE?']),
        ('seed: 1', ['seed is not a key', 'did you mean SEED?']),
        ('TRAIN: 3', ['TRAIN is a section', 'found 3']),
        ('TRAIN:', ['TRAIN is a section', 'None']),
        ('TRAIN: {BATCH_SIZE: many}', ["FILE: TRAIN.BATCH_SIZE is 'many', but must be a whole number"]),
        ('TRAIN: {BATCH_SIZE: 0}', ['must be a whole number, at least 1']),
        ('NAME:', ['NAME is None, but must be a text']),
        ('- 1', ['found list']),
        ('just words', ['found str']),
        ('a: [', ['not valid YAML in line 1']),
        ('a:\n\t- b', ['not valid YAML in line 2']),
        ('? [a, b]\n: 1', ['a key must be a plain text']),
        ('? {a: 1}\n: 1', ['a key must be a plain text']),
        ('NAME: 2020-99-99', ['not valid YAML', 'month']),
        ('NAME: !!int x', ['not valid YAML']),
        ('NAME: !!timestamp x', ['not valid YAML']),
        ('SEED: ' + '1' * 400, ['must be a whole number']),
        ('NAME: ' + '[' * 1200, ['not valid YAML']),
        ('NAME: \x07', ['not valid YAML']),
        ('NAME: !!python/object/apply:os.system [exit]', ['not valid YAML', 'could not determine a constructor']),
        ('NAME: !!python/name:os.system', ['not valid YAML']),
        ('--- {}\n--- {}', ['not valid YAML']),
    ],
    ids=range(27),
)
def test_faulty_texts(text, words):
    message = refused(text)
    assert all(word in message for word in words), message


def test_unknown_keys_are_noted_where_they_are_allowed():
    unknown = []
    assert parse_config_text('SEED: 1\nX: 2\nTRAIN: {Y: 3}', 'FILE', unknown) == {'SEED': 1}
    assert unknown == ['X', 'TRAIN.Y']
    refused('SEED: x', unknown=[])


def test_a_python_file_is_refused_unread(tmp_path):
    """yacs would execute it."""
    trap = tmp_path / 'config.py'
    trap.write_text(f'open({str(tmp_path / "ran")!r}, "w")\ncfg = 1')
    with pytest.raises(UserError, match=r'config.py: only YAML files \(.yaml, .yml\) are accepted'):
        read_config_file(str(trap))
    assert not (tmp_path / 'ran').exists()


def test_files(tmp_path):
    good = tmp_path / 'good.yaml'
    good.write_text('SEED: 3  # café', encoding='utf-8')
    assert read_config_file(str(good)) == {'SEED': 3}
    (tmp_path / 'good.yml').write_text('SEED: 4')
    assert read_config_file(str(tmp_path / 'good.yml')) == {'SEED': 4}
    with pytest.raises(UserError, match=r'goood.yaml: no such file \(did you mean .*good.yaml\?\)'):
        read_config_file(str(tmp_path / 'goood.yaml'))
    (tmp_path / 'latin.yaml').write_bytes(b'NAME: caf\xe9')
    with pytest.raises(UserError, match=r'latin.yaml: cannot be read'):
        read_config_file(str(tmp_path / 'latin.yaml'))
    (tmp_path / 'folder.yaml').mkdir()
    with pytest.raises(UserError, match=r'folder.yaml: no such file'):
        read_config_file(str(tmp_path / 'folder.yaml'))
    (tmp_path / 'bad.yaml').write_text('SEED: x')
    with pytest.raises(UserError, match=r"bad.yaml: SEED is 'x'"):
        read_config_file(str(tmp_path / 'bad.yaml'))
