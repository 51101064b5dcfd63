"""Cached graphs: what is read is what was written, and no fault ends a command."""

import errno
import logging
import os

import pytest

from lib.inference import graph_cache as module
from lib.inference.graph_cache import read_graph, write_graph
from lib.runtime import files
from lib.runtime.log import LOGGER

KEY = {'backbone': 'abc', 'size': [32, 32]}
CONTENT = {'graph.bin': bytes(range(256)) * 8, 'graph.xml': b'<net/>'}


def save(folder):
    for name, data in CONTENT.items():
        (folder / name).write_bytes(data)


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(LOGGER, 'propagate', True)
    caplog.set_level(logging.INFO, LOGGER.name)
    return lambda: [record.getMessage() for record in caplog.records]


def content(path, key=KEY):
    found = read_graph(path, key)
    return None if found is None else {name: values.tobytes() for name, values in found.items()}


def test_a_graph_is_read_as_it_was_written_under_its_key_only(tmp_path, lines):
    path = tmp_path / 'engines' / 'openvino-32px-0'
    assert read_graph(path, KEY) is None
    write_graph(path, KEY, save)
    assert content(path) == CONTENT
    assert content(path, {**KEY, 'backbone': 'abd'}) is None
    assert [file.name for file in path.parent.iterdir()] == ['openvino-32px-0.safetensors']
    assert lines() == []


@pytest.mark.parametrize('part', [0.0, 0.3, 0.7, 1.0])
def test_a_damaged_file_is_converted_again(tmp_path, lines, part):
    path = tmp_path / 'graph'
    write_graph(path, KEY, save)
    file = path.with_suffix('.safetensors')
    data = bytearray(file.read_bytes())
    data[int(part * (len(data) - 1))] ^= 1
    file.write_bytes(data)
    found = content(path)
    assert found is None or (0.0 < part < 1.0 and found == CONTENT)  # names and offsets have no checksum of values
    assert found is not None or lines() == [] or 'converting again' in lines()[0]
    file.write_bytes(data[: len(data) // 2])
    assert content(path) is None
    file.write_bytes(b'')
    assert content(path) is None
    write_graph(path, KEY, save)
    assert content(path) == CONTENT


def test_a_folder_holds_the_newest_graphs(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'MAX_GRAPHS', 2)
    for number in range(4):
        write_graph(tmp_path / str(number), KEY, save)
        os.utime(tmp_path / f'{number}.safetensors', ns=(number, number))
    assert sorted(file.name for file in tmp_path.iterdir()) == ['2.safetensors', '3.safetensors']


@pytest.mark.parametrize('kind', ['write', 'sync', 'replace'])
def test_a_full_disk_is_logged_only(tmp_path, lines, monkeypatch, kind):
    def fail(name, path):
        if name == f'before {kind}':
            raise OSError(errno.ENOSPC, 'No space left on device', str(path))

    monkeypatch.setattr(files, 'on_operation', fail)
    write_graph(tmp_path / 'graph', KEY, save)
    (line,) = lines()
    assert 'graph.safetensors: not written: no space left on device' in line
    monkeypatch.setattr(files, 'on_operation', None)
    assert content(tmp_path / 'graph') is None
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_cannot_write_is_logged_only(tmp_path, lines):
    def fail(folder):
        raise RuntimeError('cannot write graph.bin')

    write_graph(tmp_path / 'graph', KEY, fail)
    assert 'cannot write graph.bin' in lines()[0]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'file').write_bytes(b'')
    write_graph(tmp_path / 'file' / 'graph', KEY, save)  # the folder cannot be created
    assert 'not written' in lines()[1]
