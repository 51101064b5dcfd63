"""A pass over a split on several ranks finds what one process finds, whatever each of them has of it."""

from itertools import chain
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import LinearClassifier
from lib.dataset.loader import EvalLoader
from lib.dataset.reader import BatchReader
from lib.dataset.transforms import ResizeCenterCrop
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.inference.run import evaluate, evaluate_sharded
from lib.model import Recognizer
from tests.dataset.loading import BAD, LABELS, SIZE, feed, files, write_images
from tests.ranks import run_ranks

NUM_CLASSES = 7
COUNTS = np.array([200, 150, 50, 30, 10, 5, 1])  # many, medium and few
TRUE = np.array([0, 6, 1, -1, 2, 3, 4, 5, 6, 0, 1], np.int32)  # one image has no label
ANSWERS = ('labels', 'best', 'confidence', 'losses')
KEYS = {'loss', 'top1', 'top5', 'mean_class_error', 'many', 'medium', 'few'}


class Split(NamedTuple):
    """So many of the images, in batches of so many; without labels, maybe."""

    num_images: int
    batch_size: int
    has_labels: bool = True


SPLITS = {
    'uneven': Split(11, 4),
    'some ranks have a batch more': Split(11, 3),
    'one by one': Split(11, 1),
    'all at once': Split(11, 64),
    'ranks without images': Split(2, 4),
    'one image': Split(1, 4),
    'no labels': Split(11, 4, has_labels=False),
}


def loader_of(folder, split, group):
    labels = TRUE if split.has_labels else np.full_like(TRUE, -1)
    reader = BatchReader(files(folder), labels, ResizeCenterCrop(SIZE, 0.875), 0)
    return EvalLoader(reader, split.num_images, split.batch_size, group=group, **feed())


def model_of(kind, classes=None):
    torch.manual_seed(3)
    # Images of noise are alike but for what is left without their mean.
    backbone = nn.Sequential(nn.InstanceNorm2d(3), nn.Flatten(), nn.Linear(3 * SIZE**2, 64))
    classifier = {'linear': LinearClassifier, 'cosine': lambda *a, **k: CosineClassifier(*a, 16.0, **k)}[kind]
    return Recognizer(backbone, classifier(64, NUM_CLASSES, classes=classes)).train()


def found_by(evaluation):
    answers = {name: torch.from_numpy(getattr(evaluation.answers, name)) for name in ANSWERS}
    return {'metrics': evaluation.metrics, 'bad': evaluation.bad, **answers}


def whole(folder, split, group):
    """Return what ranks that hold all classes find, and the rows that this one has looked at."""
    model, rows = model_of('linear'), []
    evaluation = evaluate(
        model,
        loader_of(folder, split, group),
        num_classes=NUM_CLASSES,
        train_counts=COUNTS,
        look_at=lambda batch, *_: rows.extend(batch.rows.tolist()),
        group=group,
    )
    assert model.training
    return {**found_by(evaluation), 'rows': rows}


def sharded(folder, split, group, kind):
    """Return what ranks find that hold some classes each."""
    share = group.shard(NUM_CLASSES)
    model = model_of(kind, range(share.start, share.stop))
    evaluation = evaluate_sharded(model, loader_of(folder, split, group), train_counts=COUNTS, group=group)
    assert model.training
    return found_by(evaluation)


def on_a_rank(rank, count, folder):
    group = ProcessGroup(rank, count)
    return {
        'whole': {name: whole(folder, split, group) for name, split in SPLITS.items()},
        'linear': {name: sharded(folder, split, group, 'linear') for name, split in SPLITS.items()},
        'cosine': {'uneven': sharded(folder, SPLITS['uneven'], group, 'cosine')},
    }


def alone(folder, way, split):
    if way != 'cosine':
        return whole(folder, split, SINGLE_PROCESS)
    found = evaluate(
        model_of('cosine'), loader_of(folder, split, SINGLE_PROCESS), num_classes=NUM_CLASSES, train_counts=COUNTS
    )
    return found_by(found)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Eleven files, three of which are no images: on three ranks, one or two of each."""
    assert len(LABELS) == len(TRUE) == 11
    return write_images(tmp_path_factory.mktemp('images'), BAD)


@pytest.fixture(scope='module', params=[3, pytest.param(2, marks=pytest.mark.slow)])
def per_rank(request, folder, tmp_path_factory):
    return run_ranks(on_a_rank, request.param, tmp_path_factory.mktemp('ranks'), folder)


@pytest.mark.parametrize(
    ('way', 'name'),
    [(way, name) for way in ('whole', 'linear') for name in SPLITS] + [('cosine', 'uneven')],
)
def test_every_rank_finds_what_one_process_finds(per_rank, folder, way, name):
    expected = alone(folder, way, SPLITS[name])
    if name == 'uneven':
        assert set(expected['metrics']) == KEYS
        assert len(set(expected['best'][:, 0].tolist())) >= 4, 'a model that says the same of all images proves little'
    for rank in per_rank:
        found = rank[way][name]
        assert found['bad'] == expected['bad']
        assert found['labels'].tolist() == expected['labels'].tolist()
        assert found['best'][:, 0].tolist() == expected['best'][:, 0].tolist()
        for key in ('confidence', 'losses'):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-5, equal_nan=True)
        assert len(found['best']) == SPLITS[name].num_images
        assert found['metrics'].keys() == expected['metrics'].keys()
        for key, value in expected['metrics'].items():
            # Counts are divided once, so they are equal to the last bit; losses are added up in another order.
            assert found['metrics'][key] == (pytest.approx(value, rel=1e-5, abs=1e-5) if key == 'loss' else value), key


@pytest.mark.parametrize('name', SPLITS)
def test_every_image_is_looked_at_once(per_rank, name):
    rows = [rank['whole'][name]['rows'] for rank in per_rank]
    assert list(chain.from_iterable(rows)) == list(range(SPLITS[name].num_images))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
