"""Batches of stored features are those of the images: the same rows, labels and replacements, on any rank."""

import numpy as np
import pytest
import torch

from lib.dataset.features import FeatureReader, Features
from lib.dataset.index import ClassIndex
from lib.dataset.loader import EvalLoader, TrainLoader
from lib.dataset.reader import BatchReader
from lib.dataset.sampler import Sampler, class_balance
from lib.dataset.transforms import ResizeCenterCrop
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from tests.dataset.loading import BAD, CPU, LABELS, SIZE, files, pipeline_options, write_images

CROP = ResizeCenterCrop(SIZE, 0.875)
INDEX = ClassIndex(LABELS, 4)


def store(images, dtype=np.float32) -> Features:
    """Return the pixels of each image as its features."""
    loader = EvalLoader(BatchReader(images, LABELS, CROP, 0), len(LABELS), 4, **pipeline_options())
    batches = list(loader)
    readable = torch.cat([batch.readable for batch in batches])
    values = torch.cat([batch.images.flatten(1) for batch in batches]) * readable[:, None]
    bad = [image for batch in batches for image in batch.bad]
    return Features(values.numpy().astype(dtype), LABELS.astype(np.int64), readable.numpy(), bad)


def loaders(images, features, on_bad='replace', group=SINGLE_PROCESS, **options):
    """Return the loaders of training images and of their stored features."""
    sampler = Sampler(class_balance, INDEX, 3, max_epoch=5)
    of_images = BatchReader(images, LABELS, CROP, 3, on_bad, INDEX, hint='skip them')
    of_features = FeatureReader(features, CPU, images.name, 3, on_bad, INDEX, hint='skip them')
    return (
        TrainLoader(of_images, sampler, len(LABELS), 4, group=group, **pipeline_options(), **options),
        TrainLoader(of_features, sampler, len(LABELS), 4, group=group, **options),
    )


def check_same(of_images, of_features):
    for one, other in zip(of_images, of_features, strict=True):
        assert torch.equal(one.images.flatten(1), other.images)
        for name in ('labels', 'readable', 'rows', 'bad'):
            assert str(getattr(one, name)) == str(getattr(other, name)), name
        assert other.images.dtype == torch.float32


@pytest.mark.parametrize('group', [SINGLE_PROCESS, ProcessGroup(1, 2)], ids=['one rank', 'second of two'])
@pytest.mark.parametrize('bad', [(), BAD], ids=['all readable', 'some unreadable'])
def test_training_batches(tmp_path, bad, group):
    images = files(write_images(tmp_path, bad))
    of_images, of_features = loaders(images, [store(images)], group=group)
    num_bad = 0
    for epoch in range(3):
        check_same(of_images.batches(epoch), of_features.batches(epoch))
        num_bad += sum(len(batch.bad) for batch in of_features.batches(epoch))
    assert (num_bad > 0) == bool(bad)
    check_same(of_images.batches(1, 1), of_features.batches(1, 1))


def read_epochs(loader):
    for epoch in range(5):
        list(loader.batches(epoch))


def test_a_class_without_a_readable_image(tmp_path):
    images = files(write_images(tmp_path, (10,)))
    messages = []
    for loader in loaders(images, [store(images)]):
        with pytest.raises(UserError) as caught:
            read_epochs(loader)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith('class 3: none of its 1 training images can be decoded')


def test_unreadable_images_that_end_training(tmp_path):
    images = files(write_images(tmp_path, BAD))
    messages = []
    for loader in loaders(images, [store(images)], on_bad='raise'):
        with pytest.raises(UserError, match='; skip them') as caught:
            read_epochs(loader)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_evaluation_batches(tmp_path):
    images = files(write_images(tmp_path, BAD))
    of_images = EvalLoader(BatchReader(images, LABELS, CROP, 0), len(LABELS), 4, **pipeline_options())
    of_features = EvalLoader(FeatureReader([store(images)], CPU, images.name, 0), len(LABELS), 4)
    for one, other in zip(of_images, of_features, strict=True):
        assert torch.equal(one.images.flatten(1)[one.readable], other.images[other.readable])
        for name in ('labels', 'readable', 'rows', 'bad'):
            assert str(getattr(one, name)) == str(getattr(other, name)), name


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_views_take_turns(tmp_path, dtype):
    """Epoch e has view e mod 3; float16 is read as float32."""
    images = files(write_images(tmp_path))
    one = store(images, dtype)
    views = [Features(one.values + dtype(view), one.labels, one.readable, []) for view in range(3)]
    _, loader = loaders(images, views)
    for epoch in range(5):
        for batch in loader.batches(epoch):
            expected = (one.values + dtype(epoch % 3))[batch.rows.numpy()].astype(np.float32)
            assert np.array_equal(batch.images.numpy(), expected)


def test_blocks_are_float32(tmp_path):
    features = store(files(write_images(tmp_path)), np.float16)
    blocks = list(features.batches(4, CPU, slice(1, 10)))
    assert [len(values) for values, _, _ in blocks] == [4, 4, 1]
    assert torch.equal(torch.cat([values for values, _, _ in blocks]), torch.from_numpy(features.values[1:10]).float())
