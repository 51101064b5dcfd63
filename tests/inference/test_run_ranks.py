"""A pass over a split on several ranks gives the results of one process, however the images are distributed."""

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
from lib.inference.engine import EagerEngine
from lib.inference.run import evaluate
from lib.model import Recognizer
from tests.dataset.loading import BAD, LABELS, SIZE, files, pipeline_options, write_images
from tests.ranks import run_ranks

NUM_CLASSES = 7
COUNTS = np.array([200, 150, 50, 30, 10, 5, 1])  # many, medium and few
TRUE = np.array([0, 6, 1, -1, 2, 3, 4, 5, 6, 0, 1], np.int32)  # one image has no label
COLUMNS = ('labels', 'topk', 'probabilities', 'losses')
KEYS = {'loss', 'top1', 'top5', 'mean_class_error', 'many', 'medium', 'few'}


class Split(NamedTuple):
    """The first images, in batches; without labels, maybe."""

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
    return EvalLoader(reader, split.num_images, split.batch_size, group=group, **pipeline_options())


def model_of(kind, classes=None):
    torch.manual_seed(3)
    # Images of noise differ only after their mean is subtracted.
    backbone = nn.Sequential(nn.InstanceNorm2d(3), nn.Flatten(), nn.Linear(3 * SIZE**2, 64))
    classifier = {'linear': LinearClassifier, 'cosine': lambda *a, **k: CosineClassifier(*a, 16.0, **k)}[kind]
    return Recognizer(backbone, classifier(64, NUM_CLASSES, classes=classes)).train()


def result_of(evaluation):
    predictions = {name: torch.from_numpy(getattr(evaluation.predictions, name)) for name in COLUMNS}
    return {'metrics': evaluation.metrics, 'bad': evaluation.bad, **predictions}


def whole(folder, split, group):
    """Return the results of ranks that hold all classes, and the rows that this one has predicted."""
    model, rows = model_of('linear'), []
    evaluation = evaluate(
        EagerEngine(model),
        loader_of(folder, split, group),
        train_counts=COUNTS,
        sinks=[lambda batch, _: rows.extend(batch.rows.tolist())],
        group=group,
    )
    assert model.training
    return {**result_of(evaluation), 'rows': rows}


def sharded(folder, split, group, kind):
    """Return the results of ranks that hold some classes each."""
    shard = group.shard(NUM_CLASSES)
    model = model_of(kind, range(shard.start, shard.stop))
    evaluation = evaluate(EagerEngine(model), loader_of(folder, split, group), train_counts=COUNTS, group=group)
    assert model.training
    return result_of(evaluation)


def on_a_rank(rank, count, folder):
    group = ProcessGroup(rank, count)
    return {
        'whole': {name: whole(folder, split, group) for name, split in SPLITS.items()},
        'linear': {name: sharded(folder, split, group, 'linear') for name, split in SPLITS.items()},
        'cosine': {'uneven': sharded(folder, SPLITS['uneven'], group, 'cosine')},
    }


def alone(folder, kind, split):
    if kind != 'cosine':
        return whole(folder, split, SINGLE_PROCESS)
    loader = loader_of(folder, split, SINGLE_PROCESS)
    return result_of(evaluate(EagerEngine(model_of('cosine')), loader, train_counts=COUNTS))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Eleven files, three of which are no images: on three ranks, one or two of each."""
    assert len(LABELS) == len(TRUE) == 11
    return write_images(tmp_path_factory.mktemp('images'), BAD)


@pytest.fixture(scope='module', params=[3, pytest.param(2, marks=pytest.mark.slow)])
def per_rank(request, folder, tmp_path_factory):
    return run_ranks(on_a_rank, request.param, tmp_path_factory.mktemp('ranks'), folder)


@pytest.mark.parametrize(
    ('kind', 'name'),
    [(kind, name) for kind in ('whole', 'linear') for name in SPLITS] + [('cosine', 'uneven')],
)
def test_every_rank_has_the_results_of_one_process(per_rank, folder, kind, name):
    expected = alone(folder, kind, SPLITS[name])
    if name == 'uneven':
        assert set(expected['metrics']) == KEYS
        assert len(set(expected['topk'][:, 0].tolist())) >= 4, (
            'a model that predicts one class for all images proves little'
        )
    for rank in per_rank:
        found = rank[kind][name]
        assert found['bad'] == expected['bad']
        assert found['labels'].tolist() == expected['labels'].tolist()
        assert found['topk'][:, 0].tolist() == expected['topk'][:, 0].tolist()
        for key in ('probabilities', 'losses'):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-5, equal_nan=True)
        assert len(found['topk']) == SPLITS[name].num_images
        assert found['metrics'].keys() == expected['metrics'].keys()
        for key, value in expected['metrics'].items():
            # Counts are divided once, so they are equal to the last bit; losses are added up in another order.
            assert found['metrics'][key] == (pytest.approx(value, rel=1e-5, abs=1e-5) if key == 'loss' else value), key


@pytest.mark.parametrize('name', SPLITS)
def test_every_image_is_predicted_once(per_rank, name):
    rows = [rank['whole'][name]['rows'] for rank in per_rank]
    assert list(chain.from_iterable(rows)) == list(range(SPLITS[name].num_images))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
