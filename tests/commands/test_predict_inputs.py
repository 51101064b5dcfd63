"""Lists of paths on standard input, and TEST.PART."""

import codecs
import random
import re
from pathlib import Path

import pytest
from yacs.config import CfgNode as CN

from lib.commands.predict_inputs import Part, listed_paths, open_test_images, parse_part
from lib.distributed.process_group import SINGLE_PROCESS
from lib.errors import UserError

# Names as file systems allow them: blanks, quotes, accents, line breaks (with NUL only), bytes that are not UTF-8.
NAMES = ['a.jpg', ' b .jpg', '"c".jpg', 'жук 4.jpg', 'é.jpg', 'e\u0301.jpg', 'x,y.jpg', '猫/1.jpg', 'caf\udce9.jpg']


def slow_lines(content):
    """Return the lines of a list, byte by byte."""
    lines, line, index = [], b'', 0
    while index < len(content):
        byte = content[index : index + 1]
        if byte in b'\r\n':
            lines.append(line)
            line = b''
        else:
            line += byte
        index += 1
    return [one.decode('utf-8', 'surrogateescape') for one in [*lines, line] if one.strip()]


def test_lists_in_every_form():
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    draws = random.Random(seed)
    for _ in range(200):
        names = draws.choices(NAMES, k=draws.randint(1, 6))
        mark = draws.choice([b'', codecs.BOM_UTF8])
        end = draws.choice(['\n', '\r\n', '\r', '\n\n'])
        text = end.join(names).encode('utf-8', 'surrogateescape') + draws.choice([b'', end.encode()])
        assert listed_paths(mark + text) == names == slow_lines(text)
        broken = [*names, 'line\nbreak\r.jpg']
        nul = b''.join(name.encode('utf-8', 'surrogateescape') + b'\0' for name in broken)
        assert listed_paths(mark + nul) == broken
        plain = [name for name in names if name.isprintable()] or ['a']
        for encoding, utf16 in (('utf-16-le', codecs.BOM_UTF16_LE), ('utf-16-be', codecs.BOM_UTF16_BE)):
            assert listed_paths(utf16 + '\r\n'.join(plain).encode(encoding)) == plain


@pytest.mark.parametrize('content', [b'', b'\n \r\n', b'\0\0', codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
def test_a_list_without_paths_is_empty(content):
    assert listed_paths(content) == []


def test_folders_in_a_list_are_left_out(tmp_path, monkeypatch):
    """`find FOLDER` without `-type f` lists the folders, too."""
    monkeypatch.chdir(tmp_path)
    for path in ('new/a.jpg', 'new/caf\udce9/b', 'new/empty'):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    listed = ['new', 'new/a.jpg', 'new/caf\udce9', 'new/caf\udce9/b', 'new/missing', 'new/missing.jpg', 'new/']
    Path('list.txt').write_bytes('\n'.join(listed).encode('utf-8', 'surrogateescape'))
    split, _ = open_test_images(CN({'TEST': {'IMAGES': 'list.txt'}}), ['x', 'y'], SINGLE_PROCESS)
    assert [split.images.paths[row] for row in range(len(split))] == [listed[1], *listed[3:6]]


def test_parts():
    assert parse_part('') is None
    assert parse_part('3/64') == Part(3, 64)
    assert parse_part('merge/64') == Part(0, 64)
    for text in ('0/3', '4/3', '1/0', 'merge/0', '3', 'x/3', 'merge', '-1/3', '1/3/5', '1.0/3', '٣/4'):
        with pytest.raises(UserError, match=f'TEST.PART is {re.escape(repr(text))}.*such as 3/64'):
            parse_part(text)
