"""Only regular files are read, without blocking, and up to a size."""

import os
import socket
from pathlib import Path

import pytest

from lib.runtime import read_file
from lib.runtime.read_file import RefusedFileError, check_regular, open_regular, open_text, read_bytes, read_text

READERS = {
    'read_bytes': lambda path: read_bytes(path, max_bytes=100),
    'read_text': lambda path: read_text(path, max_bytes=100),
    'open_regular': lambda path: open_regular(path, max_bytes=100).close(),
    'open_text': lambda path: open_text(path, max_bytes=100).close(),
    'check_regular': lambda path: check_regular(path, max_bytes=100),
}


@pytest.fixture(params=READERS)
def read(request):
    return READERS[request.param]


def test_regular_file(tmp_path, read):
    path = tmp_path / 'a'
    path.write_bytes(b'x' * 100)
    read(path)
    read(str(path))


def test_link_to_a_regular_file(tmp_path, read):
    (tmp_path / 'a').write_bytes(b'x')
    (tmp_path / 'b').symlink_to('a')
    read(tmp_path / 'b')


def test_named_pipe_does_not_block(tmp_path, read):
    os.mkfifo(tmp_path / 'a')
    with pytest.raises(RefusedFileError, match='is a named pipe, not a file') as caught:
        read(tmp_path / 'a')
    assert caught.value.filename == str(tmp_path / 'a') or caught.value.filename == tmp_path / 'a'


@pytest.mark.parametrize('path', ['/dev/zero', '/dev/null', '/dev/full'])
def test_devices(path, read):
    with pytest.raises(RefusedFileError, match='is a device, not a file'):
        read(path)


def test_socket(tmp_path, read, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind('a')
        with pytest.raises(RefusedFileError, match='is a socket'):
            read('a')


def test_folder(tmp_path, read):
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


@pytest.mark.parametrize('name', ['a\0b', 'a\ud800b'])
def test_names_that_no_file_has(tmp_path, read, name):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / name)


def test_absent_file(tmp_path, read):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / 'a')


def test_too_large_before_a_byte_is_read(tmp_path, read):
    path = tmp_path / 'a'
    with open(path, 'wb') as file:
        file.truncate(1 << 40)
    with pytest.raises(RefusedFileError, match='is larger than'):
        read(path)


def test_no_descriptor_is_left_open(tmp_path, read):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'large').write_bytes(b'x' * 101)
    before = len(os.listdir('/proc/self/fd'))
    for name in ('pipe', 'large', '', '/dev/zero'):
        with pytest.raises((RefusedFileError, IsADirectoryError)):
            read(tmp_path / name)
    assert len(os.listdir('/proc/self/fd')) == before


def test_short_reads_are_continued(tmp_path, monkeypatch):
    content = bytes(range(256)) * 50
    (tmp_path / 'a').write_bytes(content)
    real = os.read
    monkeypatch.setattr(read_file.os, 'read', lambda descriptor, size: real(descriptor, min(size, 7)))
    assert read_bytes(tmp_path / 'a', max_bytes=1 << 20) == content


def test_files_of_proc_have_size_zero():
    assert b'processor' in read_bytes('/proc/cpuinfo', max_bytes=1 << 20)


def test_file_that_grows_beyond_the_limit(tmp_path, monkeypatch):
    (tmp_path / 'a').write_bytes(b'x' * 10)
    monkeypatch.setattr(read_file.os, 'read', lambda descriptor, size: b'x' * size)
    with pytest.raises(RefusedFileError, match='is larger than'):
        read_bytes(tmp_path / 'a', max_bytes=1000)


def test_text_has_universal_line_ends(tmp_path):
    Path(tmp_path / 'a').write_bytes(b'a\r\nb\rc\n')
    assert read_text(tmp_path / 'a') == 'a\nb\nc\n' == open_text(tmp_path / 'a').read()
