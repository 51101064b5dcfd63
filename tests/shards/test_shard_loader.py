"""Batches from shards equal those from files, with any number of workers; damage is handled as for files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.dataset.index import ClassIndex
from lib.dataset.loader import Batch, EvalLoader, TrainLoader
from lib.dataset.normalize import Normalize
from lib.dataset.reader import BatchReader
from lib.dataset.sampler import Sampler, class_balance, instance_balance
from lib.dataset.transforms import RandomResizedCrop, ResizeCenterCrop
from lib.errors import UserError
from lib.shards.encode import Raw
from lib.shards.images import ShardImages
from tests.shards.packing import LABELS, as_decoded, pack

SIZE = 16


def pipeline_options(num_workers):
    return {'device': torch.device('cpu'), 'normalize': Normalize(), 'num_workers': num_workers}


def train_batches(images, num_workers=0, on_bad='replace', weights=class_balance, batch_size=4) -> list[Batch]:
    index = ClassIndex(LABELS, 4)
    reader = BatchReader(images, LABELS, RandomResizedCrop(SIZE), 3, on_bad, index, hint='use skip')
    loader = TrainLoader(
        reader, Sampler(weights, index, 3, max_epoch=5), len(LABELS), batch_size, **pipeline_options(num_workers)
    )
    return [batch for epoch in range(2) for batch in loader.batches(epoch)]


def eval_batches(images, num_workers=0) -> list[Batch]:
    reader = BatchReader(images, LABELS, ResizeCenterCrop(SIZE, 0.875), 0)
    return list(EvalLoader(reader, len(LABELS), 4, **pipeline_options(num_workers)))


def check_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for batch, expected in zip(one, other, strict=True):
        for name in ('images', 'labels', 'readable', 'rows'):
            assert torch.equal(getattr(batch, name), getattr(expected, name)), name
        assert [row for row, _ in batch.bad] == [row for row, _ in expected.bad]


@pytest.mark.process
def test_batches_equal_those_of_the_files_with_and_without_workers(photos, tmp_path):
    Path(photos.name(1)).write_bytes(b'no image')
    Path(photos.name(6)).write_bytes(b'')
    packed = pack(photos, tmp_path / 'p')
    for batches in (train_batches, eval_batches):
        expected = batches(photos)
        assert any(batch.bad for batch in expected)
        check_same(batches(packed), expected)
        check_same(batches(packed, num_workers=2), expected)


@pytest.mark.process
def test_batches_of_raw_images_equal_those_of_decoded_images_of_that_size(photos, tmp_path):
    """The same crops, flips and pixels; the second epoch reads only the rows of each crop."""
    packed, decoded = pack(photos, tmp_path / 'p', encoding=Raw(24)), as_decoded(photos, 24)
    for batches in (train_batches, eval_batches):
        expected = batches(decoded)
        check_same(batches(packed), expected)
        check_same(batches(packed, num_workers=2), expected)
    assert packed._is_verified.all()


@pytest.fixture(params=['truncated', 'missing', 'wrong bytes'])
def damaged(request, packed):
    """Damage row 5 (and 3, 4 unless the shard is truncated after them); rows 6 and 7 of its class are intact."""
    path = packed.index.path.with_name('000001.tar')
    if request.param == 'truncated':
        os.truncate(path, int(packed.index.offsets[5]) + 1)
    elif request.param == 'missing':
        path.unlink()
    else:
        path.write_bytes(b'x' * path.stat().st_size)
    return ShardImages(packed.index.path)


def test_damaged_images_are_skipped(damaged):
    batches = train_batches(damaged, weights=instance_balance, batch_size=11)
    bad = dict(pair for batch in batches for pair in batch.bad)
    assert 5 in bad
    assert '000001.tar, row 5: ' in bad[5]
    assert all(batch.readable.all() for batch in batches)
    marked = eval_batches(damaged)
    readable = torch.cat([batch.readable for batch in marked])
    assert not readable[5]
    assert readable[[*range(3), *range(6, 11)]].all()
    assert np.isfinite(torch.cat([batch.images for batch in marked]).numpy()).all()


@pytest.mark.process
def test_workers_report_the_same_faults(packed):
    packed.index.path.with_name('000001.tar').unlink()
    images = ShardImages(packed.index.path)
    alone, pair = eval_batches(images), eval_batches(images, num_workers=2)
    check_same(alone, pair)
    assert [batch.bad for batch in alone] == [batch.bad for batch in pair]


def test_damaged_images_stop_the_run_with_on_bad_raise(damaged):
    with pytest.raises(UserError, match=r'000001\.tar.*row \d.*use skip$'):
        train_batches(damaged, on_bad='raise', weights=instance_balance, batch_size=11)
