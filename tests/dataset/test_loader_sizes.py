"""Image sizes that change over the run: each epoch has its size, whatever its workers read before."""

import pytest
import torch

from lib.dataset.index import ClassIndex
from lib.dataset.loader import TrainLoader
from lib.dataset.sampler import Sampler, class_balance
from lib.dataset.transforms import PadCrop, RandomResizedCrop, ResizeCenterCrop
from tests.dataset.loading import BAD, LABELS, SIZE, all_same, files, pipeline_options, reader_of, write_images

SIZES = {1: 24, 2: 8, 4: 32}  # before the first, SIZE
EXPECTED = [SIZE, 24, 8, 8, 32, 32]

TRANSFORMS = {
    'random_resized_crop': lambda size: RandomResizedCrop(size, (0.3, 1.0)),
    'pad_crop': lambda size: PadCrop(size, 3),
    'center_crop': lambda size: ResizeCenterCrop(size, 0.9),
}


@pytest.fixture
def images(tmp_path):
    return files(write_images(tmp_path, BAD))


def loader_of(images, size=SIZE, sizes=None, num_workers=0, transform='random_resized_crop', on_bad='replace'):
    sampler = Sampler(class_balance, ClassIndex(LABELS, 4), 3, max_epoch=5)
    reader = reader_of(images, on_bad, transform=TRANSFORMS[transform](size))
    return TrainLoader(reader, sampler, len(LABELS), 3, sizes=sizes, **pipeline_options(num_workers))


@pytest.mark.parametrize(
    ('sizes', 'expected'),
    [(SIZES, EXPECTED), ({}, [SIZE] * 6), ({0: 12}, [12] * 6), ({0: 8, 5: 9}, [8] * 5 + [9]), ({9: 99}, [SIZE] * 6)],
)
def test_the_size_of_an_epoch(images, sizes, expected):
    assert [loader_of(images, sizes=sizes).size_at(epoch) for epoch in range(6)] == expected


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_an_epoch_equals_that_of_a_run_at_its_size(images, transform):
    """Crops, flips and replacements are equal too, from any step on."""
    growing = loader_of(images, sizes=SIZES, transform=transform)
    for epoch, size in enumerate(EXPECTED):
        expected = list(loader_of(images, size, transform=transform).batches(epoch))
        assert {batch.images.shape[1:] for batch in expected} == {(3, size, size)}
        for first_step in range(3):
            assert all_same(growing.batches(epoch, first_step), expected[first_step:])


@pytest.mark.process
def test_workers_read_sizes_in_any_order(images):
    """Use the same two workers and buffers for rising and falling sizes and for interrupted epochs.

    Unreadable images and padding would show remains of an earlier batch in a buffer; all batches are stored until the
    end.
    """
    options = {'sizes': SIZES, 'transform': 'pad_crop', 'on_bad': 'mark'}
    alone, pair = loader_of(images, **options), loader_of(images, num_workers=2, **options)
    batches, expected = [], []
    for epoch, first_step in ((0, 0), (1, 0), (4, 0), (0, 1), (2, 0), (1, 0), (5, 2), (3, 0)):
        batches += pair.batches(epoch, first_step)
        expected += alone.batches(epoch, first_step)
        if epoch:
            next(pair.batches(epoch - 1))
    assert not torch.cat([batch.readable for batch in expected]).all()
    assert all_same(batches, expected)
