"""YAML to flat keys and back; no code in YAML is executed."""

from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.config.defaults import KEYS, TREE
from lib.config.options import parse_options
from lib.config.yaml_text import _Fault, _load_by, as_node, as_text, as_values, parse_config_text, read_config_file
from lib.errors import UserError, url_fault

DEFAULTS = {name: key.default for name, key in KEYS.items()}
# Texts that YAML would parse as another type without quotes.
MISLEADING = ('yes', 'null', '~', '1e5', '12', '1.5', '2020-01-01', ' x ', '#', 'a: b', '- a', '=')
# Line ends and control characters, too, but NUL, which no text may contain.
TEXT = st.text(st.characters(exclude_categories=('Cs',), exclude_characters='\0'), max_size=20)
# Plain scalars to which YAML 1.1 or 1.2 gives another type or value.
RETYPED = (
    '007', '0o17', '0x1F', '0b11', '1_000', '1e3', '1E3', '1.50', '-0', '+1', '.5', '1.', '.inf', '-.INF', '.nan',
    '12:30', '12:30:45', '190:20:30.15', 'yes', 'No', 'ON', 'off', 'True', 'FALSE', 'y', 'N', 'null', 'Null', '~',
    '2020-01-01', '2020-99-99', '2001-12-14t21:59:43.10-05:00', '=', '4006381333931', '4.00638E+12', '1' * 40, 'a-b c',
    "it's", '<<',
)  # fmt: skip


def values_of(key):
    """Return a strategy of values that a key allows."""
    if key.auto is not None:
        return st.just(key.auto) | values_of(replace(key, auto=None)).filter(lambda value: value != key.auto)
    if key.choices:
        one = st.sampled_from(key.choices)
        return st.lists(one).map(tuple) if isinstance(key.default, tuple) else one
    low, high = key.low, key.high

    def floats():
        return st.floats(low, high, allow_nan=False, allow_infinity=False)

    if isinstance(key.default, bool):
        return st.booleans()
    if isinstance(key.default, int):
        return st.integers(-(2**63) + 1 if low is None else int(low), 2**63 - 1 if high is None else int(high))
    if isinstance(key.default, float):
        return floats()
    if isinstance(key.default, tuple):
        of_type = {float: floats(), int: st.integers(int(low or 0), 2**31), str: TEXT.filter(is_local)}
        entries = of_type[key.entry_type]
        return st.lists(entries, max_size=5).map(tuple)
    return (TEXT | st.sampled_from(MISLEADING)).filter(is_local)


def is_local(text):
    return not url_fault(text)


def refused(text, unknown=None):
    with pytest.raises(UserError) as caught:
        parse_config_text(text, 'FILE', unknown)
    assert str(caught.value).startswith('FILE')
    return str(caught.value)


@pytest.mark.long
@settings(max_examples=25, deadline=None)
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


@pytest.mark.parametrize('text', RETYPED)
def test_the_value_of_a_text_key_is_what_the_file_contains(text):
    single = text.replace("'", "''")
    for value in (text, f"'{single}'", f'"{text}"', f'!!str {text}', f'  {text}   # comment'):
        assert parse_config_text(f'NAME: {value}', 'FILE') == {'NAME': text}
    found = parse_config_text(f'TEST:\n  ENSEMBLE:\n  - {text}\n  - a.pth\nPOSTHOC: {{METHODS: ["{text}"]}}', 'FILE')
    assert found == {'TEST.ENSEMBLE': (text, 'a.pth'), 'POSTHOC.METHODS': (text,)}


def test_saved_configs_and_the_command_line_keep_texts_too():
    saved = as_text(as_node({**DEFAULTS, 'NAME': '007', 'TEST.ENSEMBLE': RETYPED}))
    again = parse_config_text(saved, 'FILE')
    assert (again['NAME'], again['TEST.ENSEMBLE']) == ('007', RETYPED)
    assert yaml.safe_load(saved)['TEST']['ENSEMBLE'] == list(RETYPED), 'other readers of config.yaml see texts, too'
    argv = ['--NAME', '007', '--TEST_ENSEMBLE', ','.join(RETYPED)]
    assert parse_options(argv, program='main.py', description='')[1] == {'NAME': '007', 'TEST.ENSEMBLE': RETYPED}


@pytest.mark.parametrize(
    ('text', 'number'),
    [
        ('007', 7), ('-0', 0), ('010', 10), ('1_000', 1000), ('+5', 5), ("'12'", 12), ('1' * 18, int('1' * 18)),
        *((text, None) for text in (
            '12:30', '1:0', '0x1F', '0o17', '0b11', '1e3', '1.5', '7.0', '1__0', '_1', '1_', '.inf', '.nan', 'inf',
            'nan', 'yes', 'null', '~', '', '1,000', '1 000', '[1]', '{a: 1}', '2020-01-01', '1' * 400, '1' * 5000,
        )),
    ],
)  # fmt: skip
def test_whole_numbers_are_decimal(text, number):
    if number is None:
        assert 'must be a whole number' in refused(f'SEED: {text}')
        assert len(refused(f'SEED: {text}')) < 160
    else:
        assert parse_config_text(f'SEED: {text}', 'FILE') == {'SEED': number}


@pytest.mark.parametrize(
    ('text', 'number'),
    [
        ('1e-4', 1e-4), ('1.0e-05', 1e-5), ('.5', 0.5), ('007.5', 7.5), ('1_0.5', 10.5), ('0', 0.0),
        *((text, None) for text in ('1:30.5', '.inf', '-.inf', '.NaN', '1e999', '0x1p3', 'true', '~', '', '1,5')),
    ],
)  # fmt: skip
def test_numbers_are_decimal_and_finite(text, number):
    if number is None:
        assert 'OPTIMIZER.LR is' in refused(f'OPTIMIZER: {{LR: "{text}"}}')
    else:
        assert parse_config_text(f'OPTIMIZER: {{LR: {text}}}', 'FILE') == {'OPTIMIZER.LR': number}


@pytest.mark.parametrize(('text', 'value'), [('on', True), ('OFF', False), ('yes', True), ('1', True), ('y', None)])
def test_switches(text, value):
    if value is None:
        assert f"OVERWRITE is '{text}', but must be True or False" in refused(f'OVERWRITE: {text}')
    else:
        assert parse_config_text(f'OVERWRITE: {text}', 'FILE') == {'OVERWRITE': value}


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('SEED: 1\nSEED: 2', ['line 2', "'SEED' is set twice"]),
        ('TRAIN:\n  BATCH_SIZE: 1\n  BATCH_SIZE: 2', ['line 3', "'BATCH_SIZE' is set twice"]),
        ('TRAIN: {}\nTRAIN: {}', ["'TRAIN' is set twice"]),
        ('TRAIN.BATCH_SIZE: 1\nTRAIN: {BATCH_SIZE: 2}', ['TRAIN.BATCH_SIZE is set twice']),
        ('TRAIN: {BATCHSIZE: 1}', ['TRAIN.BATCHSIZE is not a key', 'did you mean TRAIN.BATCH_SIZE?']),
        ('BATCH_SIZE: 1', ['BATCH_SIZE is not a key', 'did you mean', '.BATCH_SIZE?']),
        ('train: {BATCH_SIZE: 1}', ['train is not a key', 'did you mean TRAIN?']),
        ('seed: 1', ['seed is not a key', 'did you mean SEED?']),
        ('TRAIN: 3', ['TRAIN is a section', "found '3'"]),
        ('TRAIN:', ['TRAIN is a section', 'found nothing']),
        ('TRAIN: {BATCH_SIZE: many}', ["FILE: TRAIN.BATCH_SIZE is 'many', but must be a whole number"]),
        ('TRAIN: {BATCH_SIZE: 0}', ['must be a whole number, at least 1']),
        ('NAME:', ['NAME is empty, but must be a text', "(an empty text is '')"]),
        ('- 1', ['found a list']),
        ('just words', ['found a text']),
        ('a: [', ['not valid YAML in line 1']),
        ('a:\n\t- b', ['not valid YAML in line 2']),
        ('? [a, b]\n: 1', ['a key must be a plain text']),
        ('? {a: 1}\n: 1', ['a key must be a plain text']),
        ('NAME: !!int 7', ['not valid YAML in line 1', 'the tag tag:yaml.org,2002:int is not allowed']),
        ('NAME: !local x', ['not valid YAML in line 1', 'the tag !local']),
        ('NAME: [a]', ['NAME is a list of 1 entry, but must be a text']),
        ('NAME: {a: b}', ['NAME is', 'but must be a text']),
        ('TEST: {SCALES: [1, [2]]}', ['TEST.SCALES', 'but must be numbers separated by commas']),
        ('TRAIN: &one {BATCH_SIZE: 3}', ['not valid YAML in line 1', 'anchors (&) and aliases (*) are not allowed']),
        ('SEED: 1\nTEST:\n  <<: *one', ['not valid YAML in line 3', 'aliases']),
        ('TEST:\n  <<: {TOP_K: 1}', ['TEST.<< is not a key']),
        ('NAME: *.jpg', ['not valid YAML in line 1']),
        ('NAME: a: b', ['not valid YAML in line 1']),
        ('TRAIN:\n\tBATCH_SIZE: 1', ['line 2', 'indent with spaces, not with tabs']),
        ('SEED: 1\nNAME: a\0b', ['not valid YAML in line 2', 'the character 0x00 is not allowed']),
        ('SEED: 1\n--- \nSEED: 2', ['not valid YAML in line 2', 'a second document']),
        ('SEED: 1\n...\nSEED: 2', ['not valid YAML']),
        ('TEST: {a: ' + '{a: ' * 9 + '1' + '}' * 10, ['not valid YAML in line 1', 'more than 5 levels']),
        ('SEED: ' + '1' * 400, ['must be a whole number']),
        ('NAME: ' + '[' * 10_000, ['not valid YAML', 'more than 5 levels']),
        ('NAME: \x07', ['not valid YAML']),
        ('NAME: !!python/object/apply:os.system [exit]', ['not valid YAML', 'the tag tag:yaml.org,2002:python/object']),
        ('NAME: !!python/name:os.system', ['not valid YAML']),
        ('--- {}\n--- {}', ['not valid YAML']),
    ],
    ids=range(40),
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
    with pytest.raises(UserError, match=r'latin.yaml: cannot be read, as it is not UTF-8 \(byte 9 is 0xe9\)'):
        read_config_file(str(tmp_path / 'latin.yaml'))
    (tmp_path / 'mark.yaml').write_text('NAME: 007', encoding='utf-8-sig')
    assert read_config_file(str(tmp_path / 'mark.yaml')) == {'NAME': '007'}
    (tmp_path / 'wide.yaml').write_text('NAME: x', encoding='utf-16')
    with pytest.raises(UserError, match=r'wide.yaml: cannot be read, as it is not UTF-8 \(UTF-16\); save it as UTF-8'):
        read_config_file(str(tmp_path / 'wide.yaml'))
    (tmp_path / 'folder.yaml').mkdir()
    with pytest.raises(UserError, match=r'folder.yaml: cannot be read \(is a folder, not a file\)'):
        read_config_file(str(tmp_path / 'folder.yaml'))
    (tmp_path / 'bad.yaml').write_text('SEED: x')
    with pytest.raises(UserError, match=r"bad.yaml: SEED is 'x'"):
        read_config_file(str(tmp_path / 'bad.yaml'))


@given(TEXT | st.lists(st.sampled_from(RETYPED + MISLEADING)).map(lambda parts: 'A: ' + '\nB: '.join(parts)))
def test_the_fast_parser_reads_what_the_one_in_python_reads(text):
    try:
        expected = _load_by(text, yaml.BaseLoader)
    except (yaml.YAMLError, _Fault):
        return  # libyaml accepts a tab after a value
    assert _load_by(text, yaml.CBaseLoader) == expected
