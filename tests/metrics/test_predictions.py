"""Predictions from logits, of all classes and of the shards of ranks, against a loop in float64."""

import math

import numpy as np
import pytest
import torch

from lib.distributed.process_group import ProcessGroup
from lib.metrics.predictions import (
    BatchPredictions,
    batch_predictions,
    join_predictions,
    predictions_from_logits,
    sharded_batch_predictions,
)
from tests.ranks import run_ranks

SHAPES = [(1, 3), (6, 4), (9, 7), (5, 40), (0, 8)]


def logits_and_labels(seed, batch, num_classes):
    random = torch.Generator().manual_seed(seed)
    logits = 20 * torch.randn(batch, num_classes, generator=random)
    return logits, torch.randint(-1, num_classes, (batch,), generator=random)


def expected(logits, labels):
    """Return the five largest classes, their probabilities, and the cross entropy of each image."""
    topk, probabilities, losses = [], [], []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        topk.append(sorted(range(len(row)), key=lambda c: -row[c])[:5])
        total = sum(math.exp(z - max(row)) for z in row)
        probabilities.append([math.exp(row[c] - max(row)) / total for c in topk[-1]])
        losses.append(math.log(total) + max(row) - row[max(label, 0)])
    return topk, torch.tensor(probabilities), torch.tensor(losses)


def check(found, logits, labels):
    topk, probabilities, losses = expected(logits, labels)
    assert found.topk.tolist() == topk
    torch.testing.assert_close(found.probabilities.flatten(), probabilities.flatten(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.losses, losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('shape', SHAPES)
def test_all_classes(shape, seed):
    logits, labels = logits_and_labels(seed, *shape)
    check(batch_predictions(logits, labels), logits, labels)


def with_ties(number, *shape):
    """Return logits with many ties, within a rank and between ranks, and labels."""
    logits, labels = logits_and_labels(number, *shape)
    return (logits / 20).round(), labels


def on_a_rank(rank, count):
    return {'distinct': sharded(rank, count, logits_and_labels), 'ties': sharded(rank, count, with_ties)}


def sharded(rank, count, draw):
    group, found = ProcessGroup(rank, count), []
    for number, shape in enumerate(SHAPES):
        logits, labels = draw(number, *shape)
        rows = group.shard(shape[1])
        classes = range(rows.start, rows.stop)
        found.append(list(sharded_batch_predictions(logits[:, rows], labels, classes, shape[1], group)))
    return found


@pytest.mark.process
@pytest.mark.parametrize('count', [3, pytest.param(2, marks=pytest.mark.slow)])
def test_shards_give_every_rank_the_predictions_over_all_classes(tmp_path, count):
    """With one class or more than five per rank, images without a label, and no image."""
    per_rank = run_ranks(on_a_rank, count, tmp_path)
    for found in per_rank:
        for number, shape in enumerate(SHAPES):
            logits, labels = logits_and_labels(number, *shape)
            check(BatchPredictions(*found['distinct'][number]), logits, labels)
            check_ties(*found['ties'][number], *with_ties(number, *shape))
        # All ranks choose the same among equal ones.
        assert [topk.tolist() for topk, *_ in found['ties']] == [topk.tolist() for topk, *_ in per_rank[0]['ties']]


def check_ties(topk, _, losses, logits, labels):
    """Assert that the classes are distinct, exist, and have the largest logits."""
    for row, its_logits in zip(topk.tolist(), logits.tolist(), strict=True):
        assert len(set(row)) == len(row) == min(5, len(its_logits))
        assert min(row) >= 0
        assert [its_logits[number] for number in row] == sorted(its_logits, reverse=True)[:5]
    torch.testing.assert_close(losses, expected(logits, labels)[2], rtol=1e-5, atol=1e-5)


def test_classes_with_equal_logits_are_all_listed():
    topk = batch_predictions(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)).topk
    assert [sorted(row) for row in topk.tolist()] == [[0, 1, 2, 3, 4]] * 2


def test_unreadable_and_unlabeled_images_on_the_host():
    logits, labels = logits_and_labels(0, 4, 6)
    labels = torch.tensor([2, -1, 3, -1])
    found = predictions_from_logits(logits, labels, torch.tensor([True, True, False, False]))
    assert found.labels.tolist() == [2, -1, 3, -1]
    assert found.predicted.tolist() == [*logits[:2].argmax(dim=1).tolist(), -1, -1]
    assert found.confidence.tolist()[2:] == [0, 0]
    assert np.isnan(found.losses).tolist() == [False, True, True, True]
    assert found.labeled().labels.tolist() == [2, 3]
    assert (
        join_predictions([found.at(np.array([0])), found.at(np.array([1, 2, 3]))]).topk.tolist() == found.topk.tolist()
    )
