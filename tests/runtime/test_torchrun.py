"""What torchrun says in the environment, and what is left where it looks."""

import json

import pytest

from lib.runtime.torchrun import place, tell_failure, was_restarted

NAMES = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'TORCHELASTIC_RESTART_COUNT', 'TORCHELASTIC_ERROR_FILE')


@pytest.fixture(autouse=True)
def told(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


def test_place(told):
    assert place() == (0, 1, 0)
    told(RANK='3')
    assert place() == (0, 1, 0)
    told(WORLD_SIZE='8')
    assert place() == (3, 8, 0)
    told(LOCAL_RANK='1')
    assert place() == (3, 8, 1)


@pytest.mark.parametrize(('count', 'expected'), [(None, False), ('0', False), ('1', True), ('12', True)])
def test_restarted(told, count, expected):
    if count is not None:
        told(TORCHELASTIC_RESTART_COUNT=count)
    assert was_restarted() is expected


def test_failure(told, tmp_path):
    tell_failure('nobody looks')
    file = tmp_path / 'error.json'
    told(TORCHELASTIC_ERROR_FILE=str(file))
    tell_failure('error: rank 1: ü')
    assert json.loads(file.read_text(encoding='utf-8'))['message']['message'] == 'error: rank 1: ü'
