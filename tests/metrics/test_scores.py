"""What metrics need of logits, of all classes and of the parts that ranks hold, against a loop in float64."""

import math

import pytest
import torch

from lib.distributed.process_group import ProcessGroup
from lib.metrics.scores import Scores, scores_of, scores_of_parts
from tests.ranks import run_ranks

SHAPES = [(1, 3), (6, 4), (9, 7), (5, 40), (0, 8)]


def logits_and_labels(seed, batch, num_classes):
    random = torch.Generator().manual_seed(seed)
    logits = 20 * torch.randn(batch, num_classes, generator=random)
    return logits, torch.randint(-1, num_classes, (batch,), generator=random)


def expected(logits, labels):
    """The five best classes, the cross entropy and the largest probability of each image."""
    best, losses, chances = [], [], []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        best.append(sorted(range(len(row)), key=lambda c: -row[c])[:5])
        total = sum(math.exp(z - max(row)) for z in row)
        losses.append(math.log(total) + max(row) - row[max(label, 0)])
        chances.append(1 / total)
    return best, torch.tensor(losses), torch.tensor(chances)


def check(found, logits, labels):
    best, losses, chances = expected(logits, labels)
    assert found.best.tolist() == best
    torch.testing.assert_close(found.losses, losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.confidence, chances, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('shape', SHAPES)
def test_of_all_classes(shape, seed):
    logits, labels = logits_and_labels(seed, *shape)
    check(scores_of(logits, labels), logits, labels)


def with_ties(number, *shape):
    """Return logits of which many are equal, on a rank and on several, and their labels."""
    logits, labels = logits_and_labels(number, *shape)
    return (logits / 20).round(), labels


def of_a_rank(rank, count):
    return {'apart': of_parts(rank, count, logits_and_labels), 'ties': of_parts(rank, count, with_ties)}


def of_parts(rank, count, given):
    group, found = ProcessGroup(rank, count), []
    for number, shape in enumerate(SHAPES):
        logits, labels = given(number, *shape)
        rows = group.shard(shape[1])
        classes = range(rows.start, rows.stop)
        found.append(list(scores_of_parts(logits[:, rows], labels, classes, shape[1], group)))
    return found


@pytest.mark.parametrize('count', [3, pytest.param(2, marks=pytest.mark.slow)])
def test_of_parts_every_rank_knows_those_of_all(tmp_path, count):
    """Of one class or of more than five, on a rank; of images without a label; of no image."""
    per_rank = run_ranks(of_a_rank, count, tmp_path)
    for found in per_rank:
        for number, shape in enumerate(SHAPES):
            logits, labels = logits_and_labels(number, *shape)
            check(Scores(*found['apart'][number]), logits, labels)
            check_ties(*found['ties'][number], *with_ties(number, *shape))
        # All ranks say the same, whichever of equal ones that is.
        assert [best.tolist() for best, *_ in found['ties']] == [best.tolist() for best, *_ in per_rank[0]['ties']]


def check_ties(best, losses, _, logits, labels):
    """Different classes that exist, with the largest logits there are."""
    for row, its_logits in zip(best.tolist(), logits.tolist(), strict=True):
        assert len(set(row)) == len(row) == min(5, len(its_logits))
        assert min(row) >= 0
        assert [its_logits[number] for number in row] == sorted(its_logits, reverse=True)[:5]
    torch.testing.assert_close(losses, expected(logits, labels)[1], rtol=1e-5, atol=1e-5)


def test_equal_logits_are_all_named():
    best = scores_of(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)).best
    assert [sorted(row) for row in best.tolist()] == [[0, 1, 2, 3, 4]] * 2
