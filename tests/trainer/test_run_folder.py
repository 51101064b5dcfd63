"""The files of a run folder are restored from the checkpoint that a run resumes."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from lib.trainer.checkpointing.io import read_checkpoint, write_checkpoint
from lib.trainer.checkpointing.sharded import ClassifierShard
from lib.trainer.run_folder import BadImages, RunFolder, read_bad_images, write_bad_images
from lib.trainer.selection import Selection
from tests.trainer.small import save_original, small_checkpoint

HISTORY = [{'epoch': 1, 'split': 'train', 'loss': 0.1 + 0.2}, {'epoch': 1, 'split': 'valid', 'loss': 1e-17}]
BAD = {'train': {'a, "b".jpg': 'truncated'}, 'valid': {'c.jpg': 'no image'}}


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint that was read from another folder."""
    written = small_checkpoint(epoch=1, step=3)
    written.history, written.bad_images = HISTORY, BAD
    write_checkpoint(tmp_path / 'elsewhere' / 'last.pth', written)
    return read_checkpoint(tmp_path / 'elsewhere' / 'last.pth')


def lines(path):
    return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def test_an_empty_folder_gets_the_lists_of_the_checkpoint(checkpoint, tmp_path):
    folder = RunFolder(tmp_path / 'run')
    folder.start_from(checkpoint)
    assert lines(folder.path) == HISTORY == folder.history()
    assert read_bad_images(folder.path) == BAD == folder.bad_images()


@pytest.mark.parametrize(
    'left',
    [
        '',
        '{"epoch": 1, "split": "tra',
        json.dumps(HISTORY[0]) + '\n',
        ''.join(json.dumps(entry) + '\n' for entry in [*HISTORY, {'epoch': 2, 'split': 'train'}]),
        ''.join(json.dumps(entry) + '\n' for entry in [*HISTORY, *HISTORY]) + '{"ep',
    ],
    ids=['empty', 'torn', 'a gap', 'too much', 'twice, and torn'],
)
def test_metrics_are_repaired(checkpoint, tmp_path, left):
    (tmp_path / 'metrics.jsonl').write_text(left)
    folder = RunFolder(tmp_path)
    folder.start_from(checkpoint)
    folder.append({'epoch': 2})
    assert lines(tmp_path) == [*HISTORY, {'epoch': 2}]


def test_an_older_checkpoint_keeps_the_lines_of_its_epochs(checkpoint, tmp_path):
    checkpoint.history = checkpoint.bad_images = None
    folder = RunFolder(tmp_path)
    for entry in (*HISTORY, {'epoch': 2}):
        folder.append(entry)
    write_bad_images(tmp_path, 'train', {'x.jpg': 'no image'})
    folder.start_from(checkpoint)
    assert lines(tmp_path) == HISTORY
    assert folder.bad_images() == {'train': {'x.jpg': 'no image'}}


def test_a_new_run_begins_without_metrics(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append({'epoch': 1})
    folder.start_from(None)
    assert folder.history() == []


def test_bad_images_found_after_the_checkpoint_are_dropped(checkpoint, tmp_path):
    """Those of the test split stay listed."""
    write_bad_images(tmp_path, 'test', {'t.jpg': 'no image'})
    write_bad_images(tmp_path, 'train', {**BAD['train'], 'later.jpg': 'no image'})
    folder = RunFolder(tmp_path)
    folder.start_from(checkpoint)
    assert read_bad_images(tmp_path) == {**BAD, 'test': {'t.jpg': 'no image'}}
    BadImages(folder, lambda row: 'later.jpg', 100, 0.5).add([(7, 'no image')])
    assert list(folder.bad_images()['train']) == [*BAD['train'], 'later.jpg']


def test_files_of_a_killed_save_are_removed(checkpoint, tmp_path):
    left = ['.last.0123abcd.tmp.pth', '.best_model.00000000.tmp.pth', '.metrics.ffffffff.tmp.jsonl']
    others = ['.last.0123abcd.tmp.csv', '.last.xyz.tmp.pth', 'a.0123abcd.tmp.pth', '.lock', 'tmp.pth', 'notes.txt']
    for name in left + others:
        (tmp_path / name).write_text('')
    RunFolder(tmp_path).start_from(checkpoint)
    # test.py may be writing predictions at this moment.
    assert {*os.listdir(tmp_path)} == {*others, 'elsewhere', 'metrics.jsonl', 'bad_images.csv'}


def sharded(epoch, rank=0):
    """A checkpoint whose classifier is sharded over two ranks."""
    whole, classes = small_checkpoint(epoch=epoch), range(3 * rank // 2, 3 * (rank + 1) // 2)
    rows = {name: whole.state_dict.pop(name)[classes.start : classes.stop] for name in [*whole.state_dict][1:]}
    optimizer = {**whole.optimizer, 'rows': {}}
    return replace(whole, optimizer=optimizer, classifier_shard=ClassifierShard(rows, classes, 3, rank, 2))


def save_sharded(path, epoch, **how):
    RunFolder(path, writes=False).save(sharded(epoch, 1))
    RunFolder(path, save_every=2).save(sharded(epoch), end_of_epoch=True, **how)


def shard_folders(path):
    return sorted(folder.name for folder in path.glob('head-*'))


def test_shards_remain_while_a_checkpoint_refers_to_them(tmp_path):
    """Files that are no checkpoints are ignored."""
    (tmp_path / 'epoch_0.pth').write_bytes(b'cut short')
    save_original(tmp_path / 'original.pth')
    for epoch in range(1, 6):
        save_sharded(tmp_path, epoch, is_selected=epoch == 1)
    assert shard_folders(tmp_path) == ['head-1-0', 'head-2-0', 'head-4-0', 'head-5-0']
    for name, epoch in {'best_model': 1, 'epoch_2': 2, 'epoch_4': 4, 'last': 5}.items():
        checkpoint = read_checkpoint(tmp_path / f'{name}.pth')
        assert checkpoint.progress.epoch == epoch
        torch.testing.assert_close(checkpoint.state_dict, small_checkpoint().state_dict, rtol=0, atol=0)


def selected(epoch, make=small_checkpoint):
    """A checkpoint of the selected epoch."""
    return replace(make(epoch=epoch), selection=Selection('top1', 'images', epoch, 0.5, None, 1, epoch, 0.5))


@pytest.mark.parametrize('before', [None, 1, 'damaged'])
def test_best_model_of_a_save_that_was_killed_is_written(tmp_path, before):
    """Killed between last.pth and best_model.pth of the same epoch: it is what the save would have written."""
    run = RunFolder(tmp_path / 'run')
    run.save(selected(before if before == 1 else 2), is_selected=True, end_of_epoch=True)
    best = tmp_path / 'run' / 'best_model.pth'
    if before != 1:
        best.unlink() if before is None else best.write_bytes(b'PK')
    RunFolder(tmp_path / 'run').save(selected(2), end_of_epoch=True)  # as far as last.pth
    RunFolder(tmp_path / 'run').start_from(read_checkpoint(tmp_path / 'run' / 'last.pth'))
    assert read_checkpoint(best).progress.epoch == 2
    assert not read_checkpoint(best).is_resumable


def test_best_model_is_not_written_again(checkpoint, tmp_path):
    run = tmp_path / 'run'
    RunFolder(run).save(selected(2), is_selected=True, end_of_epoch=True)
    for later in (selected(2), replace(small_checkpoint(epoch=3), selection=selected(2).selection)):
        write_checkpoint(run / 'last.pth', later)
        before = (run / 'best_model.pth').stat().st_mtime_ns
        RunFolder(run).start_from(read_checkpoint(run / 'last.pth'))
        assert (run / 'best_model.pth').stat().st_mtime_ns == before


@pytest.mark.parametrize('source', ['itself', 'best_model.pth', 'epoch_2.pth', None])
def test_a_run_resumed_in_another_folder_has_the_selected_model(tmp_path, source):
    """Also where best_model.pth was deleted; where no file has the selected epoch, the newest one is there instead."""
    run, other = tmp_path / 'run', RunFolder(tmp_path / 'other')
    RunFolder(run, save_every=2).save(selected(2), is_selected=True, end_of_epoch=True)
    later = selected(2) if source == 'itself' else replace(small_checkpoint(epoch=3), selection=selected(2).selection)
    write_checkpoint(run / 'last.pth', later)
    for name in {'best_model.pth', 'epoch_2.pth'} - {source}:
        (run / name).unlink()
    other.start_from(read_checkpoint(run / 'last.pth'))
    assert other.has_best_of(2 if source else 3)
    assert not read_checkpoint(tmp_path / 'other' / 'best_model.pth').is_resumable


def test_best_model_of_a_sharded_classifier_is_written(tmp_path):
    save_sharded(tmp_path, 1, is_selected=True)
    RunFolder(tmp_path, writes=False).save(sharded(2, 1))
    RunFolder(tmp_path).save(selected(2, sharded), end_of_epoch=True)
    RunFolder(tmp_path).start_from(read_checkpoint(tmp_path / 'last.pth', with_rows=False))
    best = read_checkpoint(tmp_path / 'best_model.pth')
    assert best.progress.epoch == 2
    torch.testing.assert_close(best.state_dict, small_checkpoint().state_dict, rtol=0, atol=0)


def test_shards_of_an_unfinished_save_are_removed_at_the_start(tmp_path):
    """They would be taken for those of a rank that has not written yet."""
    save_sharded(tmp_path, 1)
    RunFolder(tmp_path, writes=False).save(sharded(2, 1))
    (tmp_path / 'head-shots-2').mkdir()
    RunFolder(tmp_path).start_from(read_checkpoint(tmp_path / 'last.pth', with_rows=False))
    assert shard_folders(tmp_path) == ['head-1-0', 'head-shots-2']
    assert read_checkpoint(tmp_path / 'last.pth').num_classes == 3


def test_other_ranks_write_nothing(checkpoint, tmp_path):
    folder = RunFolder(tmp_path / 'run', writes=False)
    folder.start_from(checkpoint)
    folder.write_environment('', {})
    folder.append({'epoch': 1})
    folder.forget_after(0)
    BadImages(folder, lambda row: 'a.jpg', 100, 0.5).add([(7, 'no image')])
    assert not folder.path.exists()


def test_bad_images_of_commands_that_run_at_the_same_time_are_all_listed(tmp_path):
    def write(number):
        write_bad_images(tmp_path, f'predictions_{number}', {f'{number}.jpg': 'no image'})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    assert read_bad_images(tmp_path) == {f'predictions_{number}': {f'{number}.jpg': 'no image'} for number in range(24)}
