"""Which checkpoint of a run folder is gone on from when some of them are damaged."""

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
    """A run folder whose last.pth is the newest, epoch_4.pth the newest of the others."""
    save(tmp_path / 'best_model.pth', epoch=2)
    save(tmp_path / 'epoch_4.pth', epoch=4)
    save(tmp_path / 'epoch_3.pth', epoch=3)
    return tmp_path


def check_passed_over(folder, content):
    (folder / 'last.pth').write_bytes(content)
    checkpoint, faults = latest_checkpoint(folder)
    assert checkpoint.path.name == 'epoch_4.pth'
    (fault,) = faults
    assert str(folder / 'last.pth') in fault
    assert '\n' not in fault


def test_whole(folder, whole):
    (folder / 'last.pth').write_bytes(whole)
    checkpoint, faults = latest_checkpoint(folder)
    assert (checkpoint.path.name, checkpoint.progress.position, faults) == ('last.pth', (5, 3), [])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_at_any_length(folder, whole, data):
    check_passed_over(folder, whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize('bytes_left', [1, 2, 21, 22, 23])
def test_cut_at_the_end(folder, whole, bytes_left):
    check_passed_over(folder, whole[:-bytes_left])


def test_empty(folder):
    check_passed_over(folder, b'')


@pytest.mark.parametrize('length', [1, 4, 22, 4096, 100_000])
def test_zeros(folder, length):
    check_passed_over(folder, bytes(length))


@pytest.mark.parametrize('seed', range(5))
def test_zeros_from_somewhere_on(folder, whole, seed):
    """What some file systems leave of a file after a power cut: its length, but not all that was written."""
    start = random.Random(seed).randrange(len(whole) - 1)
    check_passed_over(folder, whole[:start] + bytes(len(whole) - start))


def test_all_damaged(folder, whole):
    for path in folder.glob('*.pth'):
        path.write_bytes(whole[:100])
    checkpoint, faults = latest_checkpoint(folder)
    assert checkpoint is None
    assert len(faults) == 3
