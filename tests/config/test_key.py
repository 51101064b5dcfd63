"""Values that a key accepts, as text from the command line and as values parsed from YAML."""

import math
import pickle

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lib.config.defaults import KEYS
from lib.config.key import Key, Section, did_you_mean
from lib.errors import UserError

INT = Key(3, 'A number.', low=-1, high=10)
FLOAT = Key(0.5, 'A fraction.', low=0.0, high=1.0)
FREE = Key(0.1, 'A number.')
BOOL = Key(False, 'A switch.')
TEXT = Key('', 'A name.')
CHOICE = Key('focal', 'A method.', choices=('', 'cross_entropy', 'focal'))
PAIR = Key((0.5, 1.0), 'Two numbers.', low=0.0, high=2.0)
INTS = Key((1, 2), 'Whole numbers.')
SOME = Key(('a',), 'Some of three.', choices=('a', 'b', 'cd'))


@pytest.mark.parametrize(
    ('key', 'value', 'expected'),
    [
        (INT, '7', 7), (INT, 7, 7), (INT, 7.0, 7), (INT, ' 7 ', 7), (INT, '-1', -1), (INT, 10, 10),
        (FLOAT, '1e-4', 1e-4), (FLOAT, 1, 1.0), (FLOAT, '.5', 0.5), (FLOAT, 0, 0.0),
        (FREE, '-3', -3.0),
        (BOOL, True, True), (BOOL, 'True', True), (BOOL, 'no', False), (BOOL, '0', False), (BOOL, ' ON ', True),
        (TEXT, 'x', 'x'), (TEXT, 123, '123'), (TEXT, 1.5, '1.5'), (TEXT, '', ''),
        (CHOICE, '', ''), (CHOICE, 'cross_entropy', 'cross_entropy'),
        (PAIR, '0.1,1', (0.1, 1.0)), (PAIR, [0, 1], (0.0, 1.0)), (PAIR, '(0.1, 1)', (0.1, 1.0)),
        (PAIR, '[0.1,1,]', (0.1, 1.0)), (PAIR, 1, (1.0,)), (PAIR, '', ()), (PAIR, (1, '1e-1'), (1.0, 0.1)),
        (INTS, '3,4', (3, 4)), (INTS, [5], (5,)),
        (SOME, 'cd, a', ('cd', 'a')), (SOME, ['b'], ('b',)), (SOME, '', ()),
    ],
)  # fmt: skip
def test_accepted(key, value, expected):
    found = key.accept('K', value)
    assert found == expected
    assert type(found) is type(key.default)
    if isinstance(found, tuple):
        assert {type(number) for number in found} <= {type(key.default[0])}


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        (INT, 'x'), (INT, '1.0'), (INT, 1.5), (INT, True), (INT, None), (INT, [1]), (INT, 11), (INT, '-2'), (INT, ''),
        (INT, float('inf')), (INT, 10**400), (INT, '1e1'),
        (FLOAT, 'x'), (FLOAT, True), (FLOAT, None), (FLOAT, 1.1), (FLOAT, 'nan'), (FLOAT, '-1e-9'), (FLOAT, {}),
        (FREE, 'inf'), (FREE, float('nan')), (FREE, 10**400), (FREE, '1e999'),
        (BOOL, 1), (BOOL, 'maybe'), (BOOL, None), (BOOL, ''), (BOOL, [True]),
        (TEXT, True), (TEXT, None), (TEXT, ['x']), (TEXT, {'x': 1}),
        (CHOICE, 'Focal'), (CHOICE, None), (CHOICE, 'x'),
        (PAIR, '0.1,x'), (PAIR, None), (PAIR, True), (PAIR, [0, 3]), (PAIR, [[0, 1]]), (PAIR, {'a': 1}), (PAIR, [None]),
        (INTS, '1.5'), (INTS, [1.5]), (INTS, [True]),
        (SOME, 'a,c'), (SOME, 'A'), (SOME, None), (SOME, [['a']]),
    ],
)  # fmt: skip
def test_refused(key, value):
    with pytest.raises(UserError) as caught:
        key.accept('FILE: A.KEY', value)
    message = str(caught.value)
    assert message.startswith('FILE: A.KEY is ')
    assert key.expected() in message
    assert '\n' not in message


EPOCHS = Key(3, 'A number or auto.', low=0, auto=-1)
MEAN = Key[tuple[float, ...]]((), 'Three numbers or auto.', low=0.1, entry=float, auto=())


@pytest.mark.parametrize(('key', 'stored'), [(EPOCHS, -1), (MEAN, ())])
def test_the_word_auto_stands_for_a_value_that_cannot_be_typed(key, stored):
    for word in ('auto', 'AUTO', ' auto ', stored):
        assert key.accept('K', word) == stored
    assert key.plain(stored) == 'auto'
    assert key.accept('K', key.plain(stored)) == stored
    typed = ','.join(map(str, stored)) if isinstance(stored, tuple) else str(stored)
    for value in (typed, list(stored) if isinstance(stored, tuple) else 'automatic'):
        with pytest.raises(UserError, match=r'^K is .*, but must be auto or (a whole number|numbers)'):
            key.accept('K', value)
    with pytest.raises(UserError):
        FREE.accept('K', 'auto')


def test_other_values_of_a_key_with_auto():
    assert [EPOCHS.accept('K', value) for value in ('0', 5)] == [0, 5]
    assert MEAN.accept('K', '0.5,1') == MEAN.plain((0.5, 1.0)) == (0.5, 1.0)
    for value in ('auto,1', '0.05', ['auto']):
        with pytest.raises(UserError):
            MEAN.accept('K', value)


@pytest.mark.parametrize(
    ('key', 'words'),
    [
        (INT, 'a whole number from -1 to 10'),
        (FREE, 'a number'),
        (BOOL, 'True or False'),
        (TEXT, 'a text'),
        (CHOICE, "one of '', cross_entropy, focal"),
        (PAIR, 'numbers separated by commas, such as 0.5,1.0 from 0 to 2'),
        (INTS, 'whole numbers separated by commas, such as 1,2'),
        (Key(1, '', low=1), 'a whole number, at least 1'),
        (EPOCHS, 'auto or a whole number, at least 0'),
        (MEAN, 'auto or numbers separated by commas, at least 0.1'),
    ],
)
def test_expected_lists_the_allowed_values(key, words):
    assert key.expected() == words


def test_a_near_miss_is_named():
    with pytest.raises(UserError, match=r'did you mean cross_entropy\?'):
        CHOICE.accept('LOSS.TYPE', 'Cross_Entropi')
    assert did_you_mean('zzz', ['cross_entropy']) == ''
    assert did_you_mean('TYPE', {'type': 1}) == ' (did you mean type?)'


def test_yaml_reads_1e_4_as_text_and_the_key_as_a_number():
    value = yaml.safe_load('1e-4')
    assert isinstance(value, str)
    assert FREE.accept('K', value) == 1e-4


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**62), 2**62))
def test_numbers_round_trip_through_text(number, whole):
    assert math.copysign(1, FREE.accept('K', repr(number))) == math.copysign(1, number)
    assert FREE.accept('K', repr(number)) == number
    assert Key(0, '').accept('K', str(whole)) == whole


def test_large_seeds_are_exact():
    assert Key(0, '', low=0, high=2**63 - 1).accept('SEED', str(2**63 - 1)) == 2**63 - 1
    with pytest.raises(UserError):
        Key(0, '', low=0, high=2**63 - 1).accept('SEED', 2**63)


class Sample(Section, title='a sample'):
    SIZE = Key(3, 'Size.')
    NAME = Key('x', 'Name.')


def test_a_key_is_the_value_of_a_section_and_itself_on_the_class():
    section = Sample({'SIZE': 5})
    assert section.SIZE == section['SIZE'] == 5
    assert Sample.SIZE.default == 3
    assert not hasattr(section, 'NAME')
    assert list(Sample.keys_by_name) == ['SIZE', 'NAME']
    assert Sample.title == 'a sample'


def test_a_section_can_be_copied_and_pickled():
    section = Sample({'SIZE': 5, 'NAME': 'y'})
    section.freeze()
    for copy in (section.clone(), pickle.loads(pickle.dumps(section))):
        assert copy == section
        assert type(copy) is Sample
        assert copy.is_frozen()


LONG = '1234567890' * 500  # more digits than Python converts


@pytest.mark.parametrize(
    'value',
    [LONG, f'-{LONG}', f'{LONG}.0', f'1e{LONG}', '9' * 400, '9' * 19, str(2**63), f'{LONG},{LONG}', '1e999', '\u00b2'],
)
def test_numbers_of_any_length_are_one_line(value):
    for name, key in KEYS.items():
        if key.entry_type is str:
            continue
        line = ''
        try:
            accepted = key.accept(name, value)
        except UserError as error:
            line = str(error)
        assert '\n' not in line
        assert len(line) < 600
        # Only numbers such as a learning rate may be that large.
        assert line or (isinstance(accepted, float | tuple) and key.entry_type is float)


def test_whole_numbers_fit_into_64_bits():
    with pytest.raises(UserError, match=r"K is '9999999999999999999', but must be a whole number \(below 2\^63\)"):
        Key(1, 'A number.').accept('K', '9' * 19)
    assert Key(1, 'A number.').accept('K', str(2**63 - 1)) == 2**63 - 1


def test_a_text_contains_no_nul():
    with pytest.raises(UserError, match=r"K is 'a\\x00b', which contains a NUL character"):
        Key('', 'A path.', is_path=True).accept('K', 'a\0b')


@pytest.mark.parametrize('text', [b'caf\xe9'.decode('utf-8', 'surrogateescape'), '\ud800'])
def test_texts_are_unicode(text):
    """They are written into config.yaml, reports and log lines."""
    for name, key in KEYS.items():
        if key.entry_type is str and not key.choices:
            with pytest.raises(UserError, match='which is not UTF-8 text; rename the file or folder') as caught:
                key.accept(name, text)
            str(caught.value).encode('utf-8')
