"""Batches of several ranks: concatenated, they are the batches of one process."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.dataset.images import ArrayImages
from lib.dataset.index import ClassIndex
from lib.dataset.loader import Batch, BatchTooSmall, EvalLoader, TrainLoader
from lib.dataset.reader import BatchReader
from lib.dataset.sampler import RepeatedSampler, Sampler, instance_balance
from lib.dataset.transforms import ResizeCenterCrop
from lib.distributed.process_group import ProcessGroup
from tests.dataset.loading import (
    BAD,
    CROP,
    LABELS,
    SIZE,
    all_same,
    eval_loader,
    files,
    pipeline_options,
    train_loader,
    write_images,
)


@pytest.fixture
def images(tmp_path):
    return files(write_images(tmp_path, BAD))


def joined(parts: tuple[Batch, ...]) -> Batch:
    """Return the batch of all ranks."""
    tensors = (torch.cat([getattr(part, name) for part in parts]) for name in ('images', 'labels', 'readable', 'rows'))
    return Batch(*tensors, bad=list(chain(*(part.bad for part in parts))))


def joined_batches(of_ranks: list) -> list[Batch]:
    """Return the batches of all ranks, step by step."""
    return [joined(parts) for parts in zip(*of_ranks, strict=True)]


@pytest.mark.parametrize(
    ('batch_size', 'count'), [(batch, count) for batch in (4, 5, 8, 10) for count in (1, 2, 3, 4) if batch >= 2 * count]
)
def test_ranks_split_each_batch(images, batch_size, count):
    """Flips and replacements of unreadable images are equal too, from any step on."""
    options = {'batch_size': batch_size, 'weights': instance_balance}
    alone = train_loader(images, **options)
    loaders = [train_loader(images, group=ProcessGroup(rank, count), **options) for rank in range(count)]
    assert {(one.batch_size, one.steps_per_epoch) for one in loaders} == {(batch_size, 11 // batch_size)}
    assert sum(one.local_batch_size for one in loaders) == batch_size
    expected = {epoch: list(alone.batches(epoch)) for epoch in range(3)}
    assert any(batch.bad for batch in chain(*expected.values()))
    for epoch, batches in expected.items():
        for first_step in range(alone.steps_per_epoch):
            assert all_same(joined_batches([one.batches(epoch, first_step) for one in loaders]), batches[first_step:])


@pytest.mark.process
def test_workers_of_ranks_read_the_same_batches(images):
    """The workers of each rank read one epoch, then another one from its middle on."""
    alone = train_loader(images, 5)
    loaders = [train_loader(images, 5, num_workers=2, group=ProcessGroup(rank, 2)) for rank in range(2)]
    for epoch, first_step in ((0, 0), (3, 1)):
        assert all_same(
            joined_batches([one.batches(epoch, first_step) for one in loaders]), alone.batches(epoch, first_step)
        )


def loaders_of(num_slots: int, batch_size: int, count: int) -> list[TrainLoader]:
    images = ArrayImages(np.zeros((1, SIZE, SIZE, 3), np.uint8))
    labels = np.zeros(1, np.int32)
    index = ClassIndex(labels, 1)
    sampler = RepeatedSampler(Sampler(instance_balance, index, 0, 1), num_slots)
    reader = BatchReader(images, labels, CROP, 0, 'replace', index)
    return [
        TrainLoader(reader, sampler, num_slots, batch_size, group=ProcessGroup(rank, count), **pipeline_options())
        for rank in range(count)
    ]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
def test_shards_are_contiguous_nearly_equal_and_keep_pairs(num_slots, batch_size, count, step):
    try:
        loaders = loaders_of(num_slots, batch_size, count)
    except BatchTooSmall:
        slots = min(num_slots, batch_size)
        assert slots < count or (slots % 2 == 0 and slots < 2 * count)
        return
    slots, sizes = loaders[0].batch_size, [one.local_batch_size for one in loaders]
    ends = [step * slots + sum(sizes[:rank]) for rank in range(count + 1)]
    assert [one.first_slot(step) for one in loaders] == ends[:-1]
    assert ends[-1] == (step + 1) * slots
    assert min(sizes) >= 1
    if slots % 2:
        assert max(sizes) - min(sizes) <= 1
    else:
        assert all(end % 2 == 0 for end in ends)
        assert max(sizes) - min(sizes) <= 2


@pytest.mark.parametrize(('batch_size', 'count'), [(3, 4), (6, 4), (2, 2), (1, 2), (14, 8)])
def test_a_batch_too_small_for_the_ranks(batch_size, count):
    with pytest.raises(BatchTooSmall) as caught:
        loaders_of(100, batch_size, count)
    assert (caught.value.batch_size, caught.value.num_slots, caught.value.world_size) == (batch_size, 100, count)
    assert {one.local_batch_size for one in loaders_of(100, 2 * count, count)} == {2}


def test_a_set_too_small_for_the_ranks():
    with pytest.raises(BatchTooSmall) as caught:
        loaders_of(6, 512, 4)
    assert (caught.value.batch_size, caught.value.num_slots, caught.value.world_size) == (6, 6, 4)
    assert [one.local_batch_size for one in loaders_of(6, 512, 3)] == [2, 2, 2]


@pytest.mark.parametrize('batch_size', [1, 3, 4, 100])
@pytest.mark.parametrize('count', [1, 2, 3, 4, 13])
def test_evaluation_reads_every_row_once(images, batch_size, count):
    """Thirteen ranks are more than the eleven images."""
    loaders = [eval_loader(images, batch_size, group=ProcessGroup(rank, count)) for rank in range(count)]
    of_ranks = [list(one) for one in loaders]
    assert [len(one) for one in loaders] == [len(batches) for batches in of_ranks]
    whole, batches = joined(tuple(eval_loader(images, 11))), tuple(chain(*of_ranks))
    assert all_same([joined(batches)], [whole])
    for one, batches in zip(loaders, of_ranks, strict=True):
        assert one.num_images == 11
        rows = [row for batch in batches for row in batch.rows.tolist()]
        assert rows == list(range(one.rows.start, one.rows.stop))
        assert one.max_batches == max(map(len, of_ranks))
        for number in range(one.max_batches + 1):
            assert one.batch_sizes(number) == [
                len(batches[number].rows) if number < len(batches) else 0 for batches in of_ranks
            ]


@pytest.mark.process
def test_a_rank_without_images_with_workers(images):
    reader = BatchReader(images, LABELS, ResizeCenterCrop(SIZE), 0)
    loaders = [
        EvalLoader(reader, 1, 4, group=ProcessGroup(rank, 2), **pipeline_options(num_workers=1)) for rank in range(2)
    ]
    assert [len(one) for one in loaders] == [0, 1]
    assert [[batch.rows.tolist() for batch in one] for one in loaders] == [[], [[0]]]
    assert loaders[0].max_batches == 1
