"""Untrusted values in messages: one line, bounded, without control characters."""

import ast
import random

import numpy as np
import pytest

from lib.errors import MAX_SHOWN, one_line, printable, shown, text_fault

NASTY = ['\n', '\r', '\x1b[31m', '\x07', '\0', '\t', '\u202e', '\u2066', '\u200f', '\u2028', '\x85', '\udcff', '\ud800',
    '\\', "'", '"', '$x^{', '%s', '{}', '<script>', 'é', '麦', '\U0001f600', '\u200d', 'a', ' ', '\u0301']  # fmt: skip


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        ('Milk', "'Milk'"),
        ('', "''"),
        ("Ben's", '"Ben\'s"'),
        ('Ben\'s "best"', "'Ben\\'s \"best\"'"),
        ('C:\\n', "'C:\\\\n'"),
        ('a\nerror: forged', r"'a\nerror: forged'"),
        ('\x1b[2J\u202e', r"'\x1b[2J\u202e'"),
        (b'caf\xe9'.decode('utf-8', 'surrogateescape'), r"'caf\udce9'"),
        ('a' * 68, f"'{'a' * 68}'"),
        ('a' * 1000 + 'b' * 1000, f"'{'a' * 23}...{'b' * 23}' (2,000 characters)"),
        (None, 'None'),
        (True, 'True'),
        (-3, '-3'),
        (1.5, '1.5'),
        (b'\x00' * 5000, '5,000 bytes'),
        ([1, [2]], 'a list of 2 entries'),
        ((0.5, 1), '(0.5, 1)'),
        ((1,) * 9, 'a list of 9 entries'),
        (('a',), 'a list of 1 entry'),
        ({'a': {}}, 'a mapping of 1 entry'),
        (ValueError('first\n  second\x1b'), r'first second\x1b'),
        (ValueError(), 'ValueError'),
    ],
)
def test_values_in_messages(value, text):
    assert shown(value) == text


def test_any_text_is_one_short_line():
    """Same properties for random texts: length, one line, no control character, different if its ends differ."""
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for _ in range(300):
        text = ''.join(rng.choices(NASTY, k=rng.choice([1, 5, 20, 60, 78, 79, 100, 5000])))
        line = shown(text)
        assert len(line) <= MAX_SHOWN, seed
        assert len(line.splitlines()) == 1, seed
        assert all(char.isprintable() or char == '\u200d' for char in line), seed
        line.encode()
        assert shown(f'{text}1') != shown(f'{text}2'), seed
        assert shown(f'1{text}') != shown(f'2{text}'), seed
        joined = one_line(text)
        assert len(joined.splitlines()) <= 1, seed
        assert all(char.isprintable() or char == '\u200d' for char in joined + printable(text)), seed


def test_a_short_text_can_be_read_back():
    """Independent oracle: without undecodable bytes it is a literal of Python."""
    for text in ('a\nb', "'", '"', '\'"', '\\', '\\n', 'é\u200d\u202e', '\U0001f600\x00'):
        assert ast.literal_eval(shown(text)) == text


def test_arrays_show_their_shape():
    assert shown(np.zeros((3, 4))) == 'an array of shape (3, 4)'
    assert shown(np.int64(7)) == '7'


def test_long_numbers_are_described():
    """Python converts no integer of more than 4,300 digits to a text."""
    assert shown(10**5000) == 'a number of about 5,000 digits'


def test_texts_of_options_are_bounded():
    assert text_fault('a' * 4096) == ''
    assert text_fault('a' * 4097).endswith(' (4,097 characters), but must have at most 4,096 characters')
    assert len(text_fault('\0' * 10**6)) < 150
    assert len(text_fault('\udcff' * 10**6)) < 200
