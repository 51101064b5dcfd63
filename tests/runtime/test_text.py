"""Names under Unicode NFC, warnings about names that look alike, whole numbers, and JSON of other programs."""

import json
import math
import unicodedata

import msgspec
import pytest

from lib.errors import UserError
from lib.runtime.text import (
    decimal_text,
    decode_json,
    name_warnings,
    nfc,
    parse_json,
    size_text,
    small_number,
    visible,
    whole,
)

DIGITS = '1234567890' * 500  # more than Python converts


class Form(msgspec.Struct):
    path: str
    label: int


@pytest.mark.parametrize('name', ['caf\u00e9', 'A\u030angstr\u00f6m', '\u1100\u1161', '\u0931\u093c', '\u212b', 'Milk'])
def test_equal_names_have_one_form(name):
    forms = {nfc(unicodedata.normalize(form, name)) for form in ('NFC', 'NFD')}
    assert forms == {unicodedata.normalize('NFC', name)}


# The characters that a shop's sheets and file systems add, by their names in the Unicode standard.
INVISIBLE = [
    'ZERO WIDTH SPACE', 'ZERO WIDTH JOINER', 'ZERO WIDTH NON-JOINER', 'ZERO WIDTH NO-BREAK SPACE', 'SOFT HYPHEN',
    'RIGHT-TO-LEFT MARK', 'LEFT-TO-RIGHT MARK', 'RIGHT-TO-LEFT OVERRIDE', 'POP DIRECTIONAL ISOLATE', 'WORD JOINER',
    'ARABIC LETTER MARK', 'COMBINING GRAPHEME JOINER', 'VARIATION SELECTOR-16', 'VARIATION SELECTOR-256',
    'HANGUL FILLER', 'MONGOLIAN VOWEL SEPARATOR', 'INVISIBLE SEPARATOR', 'TAG SPACE', 'BRAILLE PATTERN BLANK',
]  # fmt: skip


@pytest.mark.parametrize('character', [*map(unicodedata.lookup, INVISIBLE), '\x00', '\x7f'])
@pytest.mark.parametrize('template', ['Mil{}k', '{}Milk', 'Milk{}'])
def test_invisible_characters_are_named(character, template):
    name = template.format(character)
    [warning] = name_warnings(['Tea', 'Milk', name])
    number = ord(character)
    escapes = (f'\\x{number:02x}', f'\\u{number:04x}', f'\\U{number:08x}')
    assert "'Milk' and '" in warning
    assert any(template.format(escape) in warning for escape in escapes)
    assert warning.isprintable()


@pytest.mark.parametrize('space', ['\u00a0', '\u2009', '\u3000', '  ', '\t', '\u2028', '\x85'])
def test_spaces_are_one(space):
    [warning] = name_warnings(['Whole milk', f'Whole{space}milk'])
    assert "'Whole milk' and" in warning
    assert 'differ in spaces' in warning
    assert name_warnings([f'Milk{space}'], known=['Milk', 'milk'])


def test_case_and_equal_names():
    assert name_warnings(['Stra\u00dfe', 'STRASSE']) == [
        "classes that look like one: 'Stra\u00dfe' and 'STRASSE' (differ in upper and lower case)"
    ]
    assert name_warnings(['caf\u00e9', nfc('cafe\u0301')]) == ["classes with the same name: 'caf\u00e9'"]


def test_other_names_are_not_reported():
    names = [
        'Milk 1',
        'Milk 2',
        'Milk-1',
        'Milk',
        'm\u00b2',
        'm2',
        '\u0645\u06cc',
        '7',
        '007',
        '\U0001f468',
        'e',
        '\u00e9',
    ]
    assert name_warnings(names) == name_warnings(names, known=names) == []


def test_many_pairs_are_counted():
    names = [f'{number}{end}' for number in range(10) for end in ('', '\u200b')]
    [warning] = name_warnings(names)
    assert warning.count(' and ') == 4
    assert warning.endswith(', and 7 more')


def test_visible_shows_the_form():
    assert visible('caf\u00e9') == "'caf\u00e9'"
    assert visible('cafe\u0301') == "'cafe\\u0301'"
    assert visible('\u0939\u093f\u0928\u094d\u0926\u0940') == "'\u0939\u093f\u0928\u094d\u0926\u0940'"


@pytest.mark.parametrize(
    ('text', 'expected'),
    [('007', '7'), ('0', '0'), ('000', '0'), ('\u0663\u0660', '30'), ('-1', None), ('', None), ('\u00b2', None),
     ('1.0', None), (DIGITS, DIGITS), ('0' * 5000, '0')],
)  # fmt: skip
def test_decimal_text(text, expected):
    assert decimal_text(text) == expected


def test_small_and_whole_numbers():
    assert [small_number(text) for text in ('12', '0012', DIGITS, '9' * 18, '9' * 19, 'x')] == [
        12,
        12,
        None,
        10**18 - 1,
        None,
        None,
    ]
    assert [whole(value) for value in (3, 3.0, 3.5, True, '3', math.inf, math.nan, None)] == [3, 3] + [None] * 6


FORMS = {
    'byte order mark': b'\xef\xbb\xbf%s',
    'UTF-16 of Windows': lambda data: data.decode().encode('utf-16'),
    'UTF-16 without mark': lambda data: data.decode().encode('utf-16-be'),
    'UTF-32': lambda data: data.decode().encode('utf-32'),
}


@pytest.mark.parametrize('encode', FORMS.values(), ids=FORMS)
def test_encodings_of_json(encode):
    data = '{"path": "caf\u00e9.jpg", "label": 3}'.encode()
    data = encode % data if isinstance(encode, bytes) else encode(data)
    assert parse_json(data, Form) == Form('caf\u00e9.jpg', 3)
    assert parse_json(data) == {'path': 'caf\u00e9.jpg', 'label': 3}


@pytest.mark.parametrize(
    'value',
    [
        'NaN',
        'Infinity',
        '-Infinity',
        '1e999',
        '-1e999',
        DIGITS,
        f'-{DIGITS}',
        '[NaN, {"y": NaN}]',
        '"\\udce9"',
        '"NaN"',
    ],
)
def test_unused_fields_may_hold_anything(value):
    data = b'{"path": "NaN, a.jpg", "x": %s, "label": 3}' % value.encode()
    assert parse_json(data, Form) == Form('NaN, a.jpg', 3)
    assert parse_json(data)['label'] == 3


@pytest.mark.parametrize('label', ['3', '3.0', '3e0', '30e-1'])
def test_whole_numbers_in_any_notation(label):
    assert parse_json(b'{"path": "a", "x": NaN, "label": %s}' % label.encode(), Form).label == 3


@pytest.mark.parametrize('label', ['NaN', '3.5', '"3"', DIGITS, '1e999', 'true', 'null', '1e-3'])
def test_used_fields_may_not(label):
    with pytest.raises(msgspec.ValidationError):
        parse_json(b'{"path": "a", "label": %s}' % label.encode(), Form)


@pytest.mark.parametrize(
    ('data', 'fault'),
    [
        (b'{"a": 1,\n "b": \n x}', r'f.json:3: not valid JSON \(JSON is malformed: invalid character \(byte 17\)\)'),
        (b'{"a":\n "caf\xe9"}', 'f.json:2: not valid JSON .byte 11 is not UTF-8 text'),
        (b'{"a": NaN, "b": nan}', 'f.json:1: not valid JSON'),
        (b'{"a": 1,}', 'trailing comma'),
        (b'[' * 100_000, 'nested too deep'),
        (b'\xff\xfe{\x00"', 'not utf-16 text'),
        (b'', 'truncated'),
        (b'path,label\n', 'f.json:1: not valid JSON'),
    ],
)
def test_faults_of_json(data, fault):
    with pytest.raises(UserError, match=fault):
        decode_json('f.json', data)


def test_sizes():
    sizes = [size_text(number) for number in (0, 512, 6_758_400, 240_400, 12_288_000_000, 3e15)]
    assert sizes == ['0 bytes', '512 bytes', '6.76 MB', '240 kB', '12.3 GB', '3000 TB']


def test_numbers_are_those_of_python():
    text = '{"a": [1, -0, 1.5, 1e3, 12345678901234567890, 1e-9], "b": NaN}'
    assert parse_json(text.encode())['a'] == json.loads(text)['a']
