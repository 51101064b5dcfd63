"""Snapshots do not change while training continues, and the background thread writes all of them."""

import errno
import logging
import threading
import time
from dataclasses import replace

import pytest
import torch

from lib.errors import UserError
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing import io as checkpoint_io
from lib.trainer.checkpointing import sharded
from lib.trainer.checkpointing.async_save import AsyncSaver, snapshot
from lib.trainer.checkpointing.io import read_checkpoint
from lib.trainer.checkpointing.sharded import ClassifierShard
from lib.trainer.run_folder import RunFolder
from tests.trainer.small import small_checkpoint


def use_only_caplog(monkeypatch):
    """Log without what commands of earlier tests in this process have set."""
    for name, value in {'propagate': True, 'disabled': False, 'handlers': []}.items():
        monkeypatch.setattr(LOGGER, name, value)


@pytest.fixture
def gate(monkeypatch):
    """An event that blocks the first chunk of each checkpoint until it is set."""
    opened, write = threading.Event(), checkpoint_io._CancelableWriter.write

    def waiting(self, data):
        opened.wait(20)
        return write(self, data)

    monkeypatch.setattr(checkpoint_io._CancelableWriter, 'write', waiting)
    yield opened
    opened.set()


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, 'No space left on device', 'run/last.pth')


def test_training_does_not_change_a_snapshot(tmp_path, gate):
    torch.manual_seed(5)
    model = torch.nn.Linear(3, 3)  # the three classes of the training set
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    live = small_checkpoint(epoch=1, step=4)

    def step():
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        torch.rand(3)

    def make():
        live.state_dict = {f'classifier.{name}': value for name, value in model.state_dict().items()}
        live.training_state, live.optimizer = live.state_dict, optimizer.state_dict()
        return live

    step()
    expected, generator = snapshot(make()), torch.get_rng_state()
    with AsyncSaver(RunFolder(tmp_path)) as saver:
        saver.submit(make)
        for _ in range(3):
            step()
        live.progress.step, live.progress.loss_sum = 7, 99.0
        gate.set()
    read = read_checkpoint(tmp_path / 'last.pth')
    for name in ('state_dict', 'training_state', 'optimizer'):
        torch.testing.assert_close(getattr(read, name), getattr(expected, name), rtol=0, atol=0)
    assert not torch.equal(read.state_dict['classifier.weight'], model.weight)
    assert (read.progress.step, read.progress.loss_sum) == (4, 1.25)
    assert saver.saved == (1, 4)
    content = torch.load(tmp_path / 'last.pth', weights_only=True)
    assert torch.equal(content['rng']['torch'], generator)
    assert not torch.equal(torch.get_rng_state(), generator)


def test_shared_tensors_are_copied_once():
    shared = torch.arange(6.0).reshape(2, 3)
    taken = snapshot(
        small_checkpoint_of({'classifier.weight': shared, 'tied': shared, 'row': shared[1], 'bent': shared.t()})
    )
    state = taken.state_dict
    assert state['tied'] is state['classifier.weight']
    assert state['classifier.weight'].data_ptr() != shared.data_ptr()
    # The copy of a view does not contain the larger tensor.
    assert state['row'].untyped_storage().nbytes() == 12
    assert torch.equal(state['row'], shared[1])
    assert torch.equal(state['bent'], shared.t())
    assert taken.optimizer['param_groups'] == [{'lr': 0.1, 'params': [0]}]


def small_checkpoint_of(state):
    checkpoint = small_checkpoint()
    checkpoint.state_dict = state
    return checkpoint


def test_a_snapshot_keeps_the_memory_format():
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    taken = snapshot(small_checkpoint_of({'classifier.weight': weight}))
    assert taken.state_dict['classifier.weight'].stride() == weight.stride()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_a_snapshot_of_a_gpu():
    weight = torch.randn(1000, 1000, device='cuda')
    expected = weight.cpu()
    taken = snapshot(small_checkpoint_of({'classifier.weight': weight}))
    weight.zero_()
    copy = taken.state_dict['classifier.weight']
    assert copy.is_pinned()
    assert torch.equal(copy, expected)


def test_saves_run_one_at_a_time(tmp_path, gate):
    """A save that is requested during another one waits for it, then takes its snapshot."""
    seen, saver = [], AsyncSaver(RunFolder(tmp_path))

    def make(step):
        seen.append((step, (tmp_path / 'last.pth').exists()))
        return small_checkpoint(step=step)

    saver.submit(lambda: make(1))
    threading.Timer(0.2, gate.set).start()
    saver.submit(lambda: make(2), is_selected=True, end_of_epoch=True)
    saver.wait()
    assert seen == [(1, False), (2, True)]
    for name in ('last.pth', 'best_model.pth'):
        assert read_checkpoint(tmp_path / name).progress.step == 2


def test_a_failed_save_is_raised_by_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_io, 'write_torch', full_disk)
    failed = []
    saver = AsyncSaver(RunFolder(tmp_path), lambda: failed.append(True))
    saver.submit(small_checkpoint, end_of_epoch=True)
    with pytest.raises(OSError, match='No space left'):
        saver.wait()
    assert failed == [True]
    assert saver.saved is None
    saver.wait()  # the error is raised once


@pytest.mark.parametrize('error', [ValueError('the first'), None])
def test_leaving_raises_the_first_error(tmp_path, monkeypatch, error):
    monkeypatch.setattr(checkpoint_io, 'write_torch', full_disk)

    def run():
        with AsyncSaver(RunFolder(tmp_path)) as saver:
            saver.submit(small_checkpoint)
            if error:
                raise error

    with pytest.raises(ValueError if error else OSError, match='the first' if error else 'No space left'):
        run()


def test_a_save_that_may_fail_is_a_warning(tmp_path, monkeypatch, caplog):
    use_only_caplog(monkeypatch)
    folder = RunFolder(tmp_path)
    with AsyncSaver(folder) as saver:
        saver.submit(lambda: small_checkpoint(step=1), may_fail=True)
        saver.wait()
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, LOGGER.name):
            patch.setattr(checkpoint_io, 'write_torch', full_disk)
            saver.submit(lambda: small_checkpoint(step=2), may_fail=True)
            saver.wait()
        assert saver.saved == (2, 1)
        assert read_checkpoint(tmp_path / 'last.pth').progress.step == 1
        (record,) = caplog.records
        assert 'epoch 3, step 2 not saved: run/last.pth: no space left on device' in record.message
        saver.submit(lambda: small_checkpoint(step=3), may_fail=True)
    assert read_checkpoint(tmp_path / 'last.pth').progress.step == 3


def test_a_bug_is_never_a_warning(tmp_path, monkeypatch):
    def bug(*_, **__):
        raise KeyError('bug')

    monkeypatch.setattr(checkpoint_io, 'write_torch', bug)
    saver = AsyncSaver(RunFolder(tmp_path))
    saver.submit(small_checkpoint, may_fail=True)
    with pytest.raises(KeyError):
        saver.wait()


def test_an_interrupt_cancels_the_write(tmp_path, monkeypatch):
    write = checkpoint_io._CancelableWriter.write
    started = threading.Event()

    def slow(self, data):
        started.set()
        time.sleep(0.02)
        return write(self, data)

    monkeypatch.setattr(checkpoint_io, '_CHUNK_BYTES', 1000)
    monkeypatch.setattr(checkpoint_io._CancelableWriter, 'write', slow)
    large = {f'classifier.{name}': torch.ones(2, 1000) for name in ('weight', *range(500))}
    begun = time.monotonic()

    def run():
        with AsyncSaver(RunFolder(tmp_path)) as saver:
            saver.submit(lambda: small_checkpoint_of(large))
            started.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert time.monotonic() - begun < 5
    assert list(tmp_path.iterdir()) == []


def test_a_file_larger_than_the_free_space_is_not_begun(tmp_path, monkeypatch):
    """A full disk would also break log.txt and other runs."""
    usage = checkpoint_io.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint_io.shutil, 'disk_usage', lambda path: usage._replace(free=1000))
    begun = []
    monkeypatch.setattr(checkpoint_io.torch, 'save', lambda *_: begun.append(True))
    with pytest.raises(OSError, match='No space left') as error:
        checkpoint_io.write_torch(tmp_path / 'last.pth', {'a': [torch.ones(251)]})
    assert error.value.filename == str(tmp_path / 'last.pth')
    assert not begun
    monkeypatch.undo()
    checkpoint_io.write_torch(tmp_path / 'last.pth', {'a': torch.ones(250)})
    assert torch.load(tmp_path / 'last.pth', weights_only=True)['a'].numel() == 250


@pytest.fixture
def lost(monkeypatch):
    """A checkpoint whose second shard is never written, with short timeouts."""
    monkeypatch.setattr(sharded, '_TIMEOUT_SECONDS', 60)
    monkeypatch.setattr(sharded, '_ENDING_TIMEOUT_SECONDS', 0.2)
    shard = ClassifierShard({'classifier.weight': torch.ones(1, 2)}, range(1), 3, 0, 2)
    return replace(small_checkpoint(), state_dict={'backbone.weight': torch.ones(2)}, classifier_shard=shard)


def test_a_failed_run_does_not_wait_for_other_shards(tmp_path, lost):
    def run():
        with AsyncSaver(RunFolder(tmp_path)) as saver:
            saver.submit(lambda: lost)
            raise ValueError('why the run ends')

    started = time.monotonic()
    with pytest.raises(ValueError, match='why'):
        run()
    assert time.monotonic() - started < 10
    assert not (tmp_path / 'last.pth').exists()


def test_hurry_shortens_the_wait(tmp_path, lost):
    started = time.monotonic()
    saver = AsyncSaver(RunFolder(tmp_path))
    saver.submit(lambda: lost)
    saver.hurry()
    with pytest.raises(UserError, match='was not written by its rank'):
        saver.wait()
    assert time.monotonic() - started < 10


def test_missing_shards_within_an_epoch_are_a_warning(tmp_path, lost, monkeypatch):
    monkeypatch.setattr(sharded, '_TIMEOUT_SECONDS', 0)
    lines = []
    monkeypatch.setattr(LOGGER, 'warning', lambda text, *arguments: lines.append(text % arguments))
    with AsyncSaver(RunFolder(tmp_path)) as saver:
        saver.submit(lambda: lost, may_fail=True)
    (line,) = lines
    assert 'not saved: ' in line
    assert 'was not written by its rank' in line
    assert saver.saved is None
