"""Log lines with names of any characters."""

import logging

import pytest

from lib.errors import printable
from lib.runtime import log


@pytest.mark.parametrize(
    ('name', 'line'),
    [
        ('Café 麦茶 شای.jpg', 'Café 麦茶 شای.jpg'),
        ('a\nerror: forged\r\x1b[31m\t\x07.jpg', r'a\nerror: forged\r\x1b[31m\t\x07.jpg'),
        ('photo\u202egpj.exe', r'photo\u202egpj.exe'),
        ('می\u200cخواهم \U0001f468\u200d\U0001f469', 'می\u200cخواهم \U0001f468\u200d\U0001f469'),
        (b'caf\xe9.jpg'.decode('utf-8', 'surrogateescape'), r'caf\xe9.jpg'),
        ('half \ud800 pair', r'half \ud800 pair'),
        ('line\u2028separator', r'line\u2028separator'),
    ],
)
def test_control_characters_are_escaped(name, line, tmp_path):
    assert printable(name) == line
    record = logging.LogRecord('x', logging.WARNING, '', 0, '%s: no image', (name,), None)
    text = log._WithLevel('%(message)s').format(record)
    assert text == f'warning: {line}: no image'
    assert len(text.splitlines()) == 1
    text.encode('utf-8')
