"""What a run folder holds is made from the checkpoint that the run goes on from."""

import json
import os

import pytest

from lib.trainer.bad_images import BadImages
from lib.trainer.checkpoint import read_checkpoint, write_checkpoint
from lib.trainer.run_folder import RunFolder, read_bad_images, write_bad_images
from tests.trainer.small import small_checkpoint

HISTORY = [{'epoch': 1, 'split': 'train', 'loss': 0.1 + 0.2}, {'epoch': 1, 'split': 'valid', 'loss': 1e-17}]
BAD = {'train': {'a, "b".jpg': 'truncated'}, 'valid': {'c.jpg': 'no image'}}


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint in a folder of its own, as it is read."""
    written = small_checkpoint(epoch=1, step=3)
    written.history, written.bad_images = HISTORY, BAD
    write_checkpoint(tmp_path / 'elsewhere' / 'last.pth', written)
    return read_checkpoint(tmp_path / 'elsewhere' / 'last.pth')


def lines(path):
    return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def test_an_empty_folder_gets_what_the_checkpoint_brings_along(checkpoint, tmp_path):
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
def test_metrics_are_mended(checkpoint, tmp_path, left):
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


def test_a_new_run_begins_with_nothing(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append({'epoch': 1})
    folder.start_from(None)
    assert folder.history() == []


def test_images_that_were_found_later_are_found_again(checkpoint, tmp_path):
    """And those of the test split, of which training knows nothing, stay listed."""
    write_bad_images(tmp_path, 'test', {'t.jpg': 'no image'})
    write_bad_images(tmp_path, 'train', {**BAD['train'], 'later.jpg': 'no image'})
    folder = RunFolder(tmp_path)
    folder.start_from(checkpoint)
    assert read_bad_images(tmp_path) == {**BAD, 'test': {'t.jpg': 'no image'}}
    BadImages(folder, lambda row: 'later.jpg', 100, 0.5).add([(7, 'no image')])
    assert list(folder.bad_images()['train']) == [*BAD['train'], 'later.jpg']


def test_what_a_killed_save_left_is_removed(checkpoint, tmp_path):
    left = ['.last.0123abcd.tmp.pth', '.best_model.00000000.tmp.pth', '.metrics.ffffffff.tmp.jsonl']
    others = ['.last.0123abcd.tmp.csv', '.last.xyz.tmp.pth', 'a.0123abcd.tmp.pth', '.lock', 'tmp.pth', 'notes.txt']
    for name in left + others:
        (tmp_path / name).write_text('')
    RunFolder(tmp_path).start_from(checkpoint)
    # test.py may be writing predictions at this moment.
    assert {*os.listdir(tmp_path)} == {*others, 'elsewhere', 'metrics.jsonl', 'bad_images.csv'}


def test_another_rank_writes_nothing(checkpoint, tmp_path):
    folder = RunFolder(tmp_path / 'run', writes=False)
    folder.start_from(checkpoint)
    folder.write_about('', {})
    folder.append({'epoch': 1})
    folder.forget_after(0)
    BadImages(folder, lambda row: 'a.jpg', 100, 0.5).add([(7, 'no image')])
    assert not folder.path.exists()
