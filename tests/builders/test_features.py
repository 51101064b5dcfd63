"""The folder of cached features: other runs wait for a pass, and what does not fit is an error of one line."""

import errno
import shutil
import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from lib.builders import features
from lib.builders.features import filled_store
from lib.distributed.process_group import SINGLE_PROCESS
from lib.errors import UserError
from lib.inference.sinks import FeatureOverflow
from lib.runtime.locks import file_lock
from tests.dataset.loading import BAD, LABELS, eval_loader, files, write_images


class MeanColor:
    """An engine whose features are the mean of each channel, times a factor."""

    num_features, num_classes, classes, device = 3, 4, range(4), torch.device('cpu')

    def __init__(self, factor=1.0):
        self.factor, self.passes = factor, 0

    def features(self, images):
        self.passes += 1
        return self.factor * images.mean(dim=(2, 3))

    def inference(self):
        return nullcontext()


@pytest.fixture
def loader(tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    return eval_loader(files(write_images(folder, BAD)))


def fill(tmp_path, engine, loader, dtype='float32', key=1):
    return filled_store(
        tmp_path / 'cache' / 'train', len(LABELS), {'key': key}, engine, lambda: loader, label='train', dtype=dtype,
        group=SINGLE_PROCESS,
    )  # fmt: skip


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_a_pass_fills_the_store_once(tmp_path, loader, dtype):
    engine = MeanColor()
    store, was_complete = fill(tmp_path, engine, loader, dtype)
    expected = torch.cat([batch.images.mean(dim=(2, 3)) * batch.readable[:, None] for batch in loader]).numpy()
    assert not was_complete
    assert np.array_equal(store.columns['features'], expected.astype(dtype))
    assert [row for row, _ in store.errors()] == list(BAD)
    assert np.flatnonzero(~store.columns['readable']).tolist() == list(BAD)
    assert (fill(tmp_path, engine, loader, dtype)[1], engine.passes) == (True, 3)
    assert (fill(tmp_path, engine, loader, dtype, key=2)[1], engine.passes) == (False, 6)


def test_another_run_waits_for_the_pass(tmp_path, loader, monkeypatch):
    monkeypatch.setattr(features, '_SECONDS_BETWEEN_TRIES', 0.01)
    results = []
    thread = threading.Thread(target=lambda: results.append(fill(tmp_path, MeanColor(), loader)))
    with file_lock(tmp_path / 'cache' / '.train.lock') as acquire:
        assert acquire()
        thread.start()
        time.sleep(0.1)
        assert not (tmp_path / 'cache' / 'train').exists()
    thread.join(30)
    assert results[0][0].is_complete


def test_features_beyond_float16(tmp_path, loader):
    with pytest.raises(FeatureOverflow, match='exceed the range of float16'):
        fill(tmp_path, MeanColor(1e6), loader, 'float16')
    assert fill(tmp_path, MeanColor(1e6), loader)[0].is_complete


def test_too_little_space(tmp_path, loader, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(UserError, match=r'take 132 bytes, but the disk has 100 bytes free; --TRAIN_FEATURE_CACHE'):
        fill(tmp_path, MeanColor(), loader)
    assert not (tmp_path / 'cache' / 'train').exists()


def test_a_folder_that_cannot_be_written(tmp_path, loader, monkeypatch):
    fill(tmp_path, MeanColor(), loader)

    def refuse(path):
        raise PermissionError(errno.EACCES, 'Permission denied', str(path))

    monkeypatch.setattr(features, 'file_lock', refuse)
    for path in (tmp_path / 'cache' / 'train').iterdir():
        path.chmod(0o444)
    store, was_complete = fill(tmp_path, MeanColor(), loader)
    assert was_complete
    assert not store.columns['features'].flags.writeable
    with pytest.raises(UserError, match=r'cannot be written \(permission denied\); .* --TRAIN_FEATURE_CACHE FOLDER'):
        fill(tmp_path, MeanColor(), loader, key=2)


def test_damaged_features_are_computed_again(tmp_path, loader):
    expected = np.array(fill(tmp_path, MeanColor(), loader)[0].columns['features'])
    with open(tmp_path / 'cache' / 'train' / 'features.npy', 'r+b') as file:
        file.seek(130)
        file.write(b'\x07')
    engine = MeanColor()
    store, was_complete = fill(tmp_path, engine, loader)
    assert (was_complete, engine.passes) == (False, 1), 'only the damaged batch'
    assert np.array_equal(store.columns['features'], expected)
    assert fill(tmp_path, engine, loader)[1]
