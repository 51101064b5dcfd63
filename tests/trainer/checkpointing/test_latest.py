"""The latest checkpoint of a run folder, with damaged files in it."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.trainer.checkpointing.latest import latest_checkpoint
from tests.trainer.small import save


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return save(tmp_path_factory.mktemp('whole') / 'last.pth', epoch=5, step=3).read_bytes()


@pytest.fixture
def folder(tmp_path):
    """A run folder whose last.pth is the latest checkpoint, then epoch_4.pth."""
    save(tmp_path / 'best_model.pth', epoch=2)
    save(tmp_path / 'epoch_4.pth', epoch=4)
    save(tmp_path / 'epoch_3.pth', epoch=3)
    return tmp_path


def check_is_skipped(folder, content):
    (folder / 'last.pth').write_bytes(content)
    checkpoint, errors = latest_checkpoint(folder)
    assert checkpoint.path.name == 'epoch_4.pth'
    (error,) = errors
    assert str(folder / 'last.pth') in error
    assert '\n' not in error


def test_whole(folder, whole):
    (folder / 'last.pth').write_bytes(whole)
    checkpoint, errors = latest_checkpoint(folder)
    assert (checkpoint.path.name, checkpoint.progress.position, errors) == ('last.pth', (5, 3), [])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated_at_any_length(folder, whole, data):
    check_is_skipped(folder, whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize('bytes_left', [1, 2, 21, 22, 23])
def test_truncated_at_the_end(folder, whole, bytes_left):
    check_is_skipped(folder, whole[:-bytes_left])


def test_empty(folder):
    check_is_skipped(folder, b'')


@pytest.mark.parametrize('length', [1, 4, 22, 4096, 100_000])
def test_zeros(folder, length):
    check_is_skipped(folder, bytes(length))


@pytest.mark.parametrize('seed', range(5))
def test_zeros_after_some_byte(folder, whole, seed):
    """Some file systems leave this after a power cut: the full length, but not all of the content."""
    start = random.Random(seed).randrange(len(whole) - 1)
    check_is_skipped(folder, whole[:start] + bytes(len(whole) - start))


def test_all_damaged(folder, whole):
    for path in folder.glob('*.pth'):
        path.write_bytes(whole[:100])
    checkpoint, errors = latest_checkpoint(folder)
    assert checkpoint is None
    assert len(errors) == 3
