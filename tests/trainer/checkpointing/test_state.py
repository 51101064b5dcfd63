"""Checkpoints: round trip, invalid files, and failed writes, which leave the earlier file."""

import errno
import os
import pickle
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib.errors import UserError
from lib.runtime import files
from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from lib.trainer.checkpointing.latest import latest_checkpoint
from lib.trainer.checkpointing.state import Checkpoint
from lib.trainer.run_folder import RunFolder
from lib.trainer.selection import Selection
from tests.trainer.small import SELECTION, save, save_original, small_checkpoint


def refused(path):
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_round_trip(tmp_path):
    written = small_checkpoint(epoch=3, step=5)
    write_checkpoint(tmp_path / 'last.pth', written)
    read = read_checkpoint(tmp_path / 'last.pth')
    for name, value in written.state_dict.items():
        assert torch.equal(read.state_dict[name], value)
    assert (read.config, read.recipe, read.progress) == (written.config, written.recipe, written.progress)
    assert read.num_classes == read.training_set.num_classes == 3
    np.testing.assert_array_equal(read.training_set.class_counts, written.training_set.class_counts)
    assert read.training_set.class_counts.dtype == np.int64
    assert read.training_set.class_names == ['cola', 'tea', 'milk']
    assert read.training_set.class_parents == [['Drink'], ['Drink'], []]
    assert read.optimizer['param_groups'] == written.optimizer['param_groups']
    assert read.path == tmp_path / 'last.pth'
    assert os.listdir(tmp_path) == ['last.pth']


def test_round_trip_of_the_training_state(tmp_path):
    written = small_checkpoint(epoch=3, step=5)
    written.training_state = {name: value + 1 for name, value in written.state_dict.items()}
    written.scaler = {'scale': 65536.0, 'growth_factor': 2.0, '_growth_tracker': 3}
    written.history = [{'epoch': 1, 'split': 'valid', 'loss': float('nan')}, {'epoch': 2, 'split': 'train', 'lr': 0.1}]
    written.bad_images = {'train': {'a.jpg': 'truncated'}}
    written.progress.seconds = 1.5
    write_checkpoint(tmp_path / 'last.pth', written)
    read = read_checkpoint(tmp_path / 'last.pth')
    assert (read.progress, read.scaler, read.bad_images) == (written.progress, written.scaler, written.bad_images)
    assert repr(read.history) == repr(written.history)
    torch.testing.assert_close(read.training_state, written.training_state, rtol=0, atol=0)
    # Readers that do not know the EMA find it under the key of the weights.
    torch.testing.assert_close(read.state_dict, written.state_dict, rtol=0, atol=0)


def test_round_trip_of_the_corrections(tmp_path):
    written = small_checkpoint(epoch=3, step=5)
    record = {'file': 'd.json', 'digest': 'abc', 'counts': {'relabel': 2, 'stale': 0}, 'classes': [['tea', 2, 0]]}
    written.training_set.corrections = {'train': record}
    write_checkpoint(tmp_path / 'last.pth', written)
    assert read_checkpoint(tmp_path / 'last.pth').training_set.corrections == {'train': record}
    content = torch.load(tmp_path / 'last.pth', weights_only=True)
    # Files of earlier versions have no such entry.
    torch.save({key: value for key, value in content.items() if key != 'corrections'}, tmp_path / 'old.pth')
    assert read_checkpoint(tmp_path / 'old.pth').training_set.corrections == {}
    for damaged in (3, {'train': 3}, {'train': {**record, 'counts': {'relabel': -1}}}, {'train': {'file': 'd.json'}}):
        torch.save({**content, 'corrections': damaged}, tmp_path / 'damaged.pth')
        with pytest.raises(UserError, match='corrections'):
            read_checkpoint(tmp_path / 'damaged.pth')


def test_round_trip_of_the_selection(tmp_path):
    read = read_checkpoint(save(tmp_path / 'last.pth')).selection
    assert read == SELECTION
    np.testing.assert_array_equal(read.best_scores, SELECTION.best_scores)
    assert read_checkpoint(save(tmp_path / 'epoch_1.pth', epoch=1)).selection.best_scores.dtype == bool


def test_best_model_holds_what_prediction_needs_only(tmp_path):
    checkpoint = small_checkpoint(epoch=3)
    checkpoint.training_state = {name: value + 1 for name, value in checkpoint.state_dict.items()}
    checkpoint.scaler, checkpoint.history = {'scale': 65536.0}, [{'epoch': 1}]
    RunFolder(tmp_path).save(checkpoint, is_selected=True, end_of_epoch=True)
    best, last = (read_checkpoint(tmp_path / f'{name}.pth') for name in ('best_model', 'last'))
    assert last.is_resumable
    assert not best.is_resumable
    assert (best.optimizer, best.training_state, best.scaler, best.history) == (None, None, None, None)
    assert best.selection == last.selection
    assert best.selection.best_scores is None
    for name in ('config', 'recipe', 'progress', 'num_classes'):
        assert getattr(best, name) == getattr(last, name), name
    assert best.training_set.class_names == last.training_set.class_names
    assert all(torch.equal(value, checkpoint.state_dict[name]) for name, value in best.state_dict.items())


def test_a_checkpoint_of_an_older_version(tmp_path):
    content = torch.load(save(tmp_path / 'last.pth', epoch=3, step=5), weights_only=True)
    for name in ('training_state_dict', 'scaler', 'history', 'bad_images'):
        del content[name]
    del content['place']['seconds'], content['selection']
    content['place'] |= {'best_result': 0.5, 'best_epoch': 1}
    torch.save(content, tmp_path / 'last.pth')
    read = read_checkpoint(tmp_path / 'last.pth')
    assert read.selection == Selection(best_epoch=1, best_result=0.5)
    assert read.progress == small_checkpoint(epoch=3, step=5).progress
    assert (read.training_state, read.scaler, read.history, read.bad_images) == (None, None, None, None)


def test_nothing_but_tensors_numbers_and_text(tmp_path):
    """torch.load with weights_only reads it without this project, and it has the keys of the original entry's files."""
    content = torch.load(save(tmp_path / 'last.pth'), weights_only=True)
    assert content.keys() >= {'state_dict', 'optimizer', 'scheduler', 'epoch', 'best_result', 'config', 'rng'}
    assert content.keys() >= {'num_classes', 'class_counts', 'class_names', 'versions', 'place', 'recipe'}
    assert (content['epoch'], content['best_result'], content['num_classes']) == (2, 0.5, 3)
    assert content['class_names'] == ['cola', 'tea', 'milk']


def test_original(tmp_path):
    read = read_checkpoint(save_original(tmp_path / 'original.pth'))
    assert sorted(read.state_dict) == ['backbone.weight', 'classifier.bias', 'classifier.weight']
    assert (read.config, read.progress, read.training_set, read.optimizer) == ('', None, None, None)
    assert read.num_classes == 3


def test_weights_alone(tmp_path):
    write_checkpoint(tmp_path / 'a.pth', Checkpoint(small_checkpoint().state_dict))
    assert read_checkpoint(tmp_path / 'a.pth').num_classes == 3


class Code:
    """Unpickling this creates a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('writer', ['torch', 'torch, old format', 'pickle'])
def test_code_is_refused_without_running(tmp_path, writer):
    content = {'state_dict': small_checkpoint().state_dict, 'epoch': Code(tmp_path / 'owned')}
    path = tmp_path / 'evil.pth'
    if writer == 'pickle':
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == 'torch')
    assert 'could run code' in refused(path)
    assert not (tmp_path / 'owned').exists()
    pickle.loads(pickle.dumps(Code(tmp_path / 'owned')))  # without the protection it runs
    assert (tmp_path / 'owned').exists()


@pytest.mark.parametrize('fraction', [0, 0.02, 0.5, 0.9, 0.999])
def test_truncated(tmp_path, fraction):
    path = save(tmp_path / 'last.pth')
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    refused(path)


@pytest.mark.parametrize(
    ('content', 'part'),
    [
        ({'epoch': 3}, 'holds no state_dict'),
        ([1, 2], 'holds no state_dict'),
        ({'state_dict': {'classifier.weight': 3}}, 'holds no state_dict'),
        ({'state_dict': {'layer4.weight': torch.ones(1)}}, '--MODEL_PRETRAINED'),
        ({'conv1.weight': torch.ones(1)}, 'holds weights alone, so it is no checkpoint'),
        # A file of another program with the same keys.
        ({'state_dict': {'classifier.weight': torch.ones(3, 2)}, 'place': {'epoch': 3}}, 'cannot be read'),
        ({'state_dict': {'classifier.weight': torch.ones(3, 2)}, 'place': {'era': 3}}, 'cannot be read'),
        ({'state_dict': {3: torch.ones(3, 2)}}, 'holds no state_dict'),
        ({'state_dict': {'classifier.weight': torch.tensor(3.0)}}, 'classifier.weight'),
    ],
)
def test_no_checkpoint(tmp_path, content, part):
    torch.save(content, tmp_path / 'x.pth')
    assert part in refused(tmp_path / 'x.pth')


def test_text_and_folders(tmp_path):
    (tmp_path / 'notes.pth').write_text('a text\n')
    refused(tmp_path / 'notes.pth')
    assert f'is a folder, not a file; there are {tmp_path / "notes.pth"}' in refused(tmp_path)
    assert str(tmp_path / 'notes.pth') in refused(tmp_path / 'absent.pth')


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = save(tmp_path / 'last.pth', epoch=1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        save(path, epoch=2)
    assert read_checkpoint(path).progress.epoch == 1
    assert os.listdir(tmp_path) == ['last.pth']


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no limit on the size of files')
def test_a_write_that_the_system_truncates_keeps_the_old_file(tmp_path):
    path = save(tmp_path / 'last.pth', epoch=1)
    checkpoint = small_checkpoint(epoch=2)
    checkpoint.state_dict['backbone.weight'] = torch.ones(1_000_000)
    process = os.fork()
    if process == 0:
        code = 1
        try:
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            write_checkpoint(path, checkpoint)
        except OSError as error:
            code = 3 if error.filename == str(path) else 4
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 3
    assert read_checkpoint(path).progress.epoch == 1
    assert os.listdir(tmp_path) == ['last.pth']


def test_old_epochs_are_removed(tmp_path):
    folder = RunFolder(tmp_path / 'run', save_every=2, keep=2)
    for epoch in range(1, 10):
        folder.save(small_checkpoint(epoch=epoch), is_selected=epoch in (1, 5), end_of_epoch=True)
    assert sorted(os.listdir(tmp_path / 'run')) == ['best_model.pth', 'epoch_6.pth', 'epoch_8.pth', 'last.pth']
    for name, epoch in (('best_model', 5), ('epoch_6', 6), ('epoch_8', 8), ('last', 9)):
        assert read_checkpoint(tmp_path / 'run' / f'{name}.pth').progress.epoch == epoch


def test_keep_0_writes_no_epochs(tmp_path):
    folder = RunFolder(tmp_path / 'run', save_every=1, keep=0)
    for epoch in (1, 2):
        folder.save(small_checkpoint(epoch=epoch), end_of_epoch=True)
    assert os.listdir(tmp_path / 'run') == ['last.pth']


def test_a_save_within_an_epoch_writes_last_only(tmp_path):
    folder = RunFolder(tmp_path / 'run', save_every=2, keep=2)
    folder.save(small_checkpoint(epoch=2, step=3))
    assert os.listdir(tmp_path / 'run') == ['last.pth']


def test_latest(tmp_path):
    assert latest_checkpoint(tmp_path) == (None, [])
    save(tmp_path / 'best_model.pth', epoch=2)
    save(tmp_path / 'last.pth', epoch=2, step=1)
    checkpoint, faults = latest_checkpoint(tmp_path)
    assert (checkpoint.path.name, faults) == ('last.pth', [])


def test_metrics_of_later_epochs_are_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    for epoch in (1, 2, 3):
        folder.append({'epoch': epoch, 'split': 'train', 'loss': 0.5})
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"epoch": 4, "spl')  # a crash
    folder.forget_after(2)
    assert [entry['epoch'] for entry in folder.history()] == [1, 2]
    folder.append({'epoch': 3})
    assert [entry['epoch'] for entry in RunFolder(tmp_path).history()] == [1, 2, 3]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'version https://git-lfs.github.com/spec/v1\n', 'is no checkpoint, .*: it is a pointer of Git LFS'),
        (b'<html>', 'it is a web page'),
        (b'PK\x03\x04' + bytes(100), r'cannot be read as a checkpoint: .*cut short.* \(BadZipFile: [^.]*\)$'),
    ],
    ids=['Git LFS', 'web page', 'cut short'],
)
def test_a_file_that_is_no_checkpoint_is_named_in_a_short_line(tmp_path, content, message):
    path = tmp_path / 'best_model.pth'
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_checkpoint(path)


def test_safetensors_of_another_program_hold_weights_alone(tmp_path):
    save_file({'conv1.weight': torch.ones(1)}, tmp_path / 'model.safetensors')
    assert 'it holds weights alone; give backbone weights' in refused(tmp_path / 'model.safetensors')
