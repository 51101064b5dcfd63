"""Losses of a part of the classes: on ranks that share them, against the whole; and what Columns and Places do."""

import itertools

import pytest
import torch

from lib.loss.cross_entropy import CrossEntropy
from lib.loss.label_aware_smoothing import LabelAwareSmoothing
from lib.loss.sharded_logits import ClassSubset, LabelIndex, ShardedLogits
from tests.loss.cases import CASES, COUNTS
from tests.loss.head import LABEL_KINDS, Head, average_loss, head_and_targets, whole
from tests.loss.on_ranks import CHUNKS, CUTS, SEED, everything
from tests.ranks import run_ranks

every_loss = pytest.mark.parametrize('name', CASES)
EXACT = {'rtol': 1e-10, 'atol': 1e-10}


@pytest.fixture(scope='module', params=[2, 3])
def of_ranks(request, tmp_path_factory):
    """What each rank of two or three found."""
    return run_ranks(everything, request.param, tmp_path_factory.mktemp('ranks'), 5)


@every_loss
def test_parts_equal_the_whole(name, of_ranks):
    """Loss, predictions and all gradients, chunked or not."""
    for kind, chunk in itertools.product(LABEL_KINDS, CHUNKS):
        expected = whole(average_loss(name, weighted=chunk == 4), *head_and_targets(SEED, kind))
        for cuts in range(len(CUTS[len(of_ranks)])):
            found = [rank['parts'][f'{name} {kind} {cuts} {chunk}'] for rank in of_ranks]
            for part in found:
                torch.testing.assert_close(part['loss'], expected['loss'], **EXACT)
                assert torch.equal(part.get('predicted', expected['predicted']), expected['predicted'])
            shares = sum(part['features'] for part in found)
            torch.testing.assert_close(shares, expected['features'], **EXACT)
            for rows in Head._fields[1:]:
                torch.testing.assert_close(torch.cat([part[rows] for part in found]), expected[rows], **EXACT)


def test_parts_draw_alike(of_ranks):
    for rank in of_ranks:
        torch.testing.assert_close(rank['chance']['part'], of_ranks[0]['chance']['whole'], **EXACT)


def test_hard_labels_equal_torchs_loss_parallel(of_ranks):
    for rank in of_ranks:
        found = rank['loss_parallel']
        torch.testing.assert_close(found['our_loss'], found['their_loss'], **EXACT)
        torch.testing.assert_close(found['our_gradient'], found['their_gradient'], **EXACT)


@pytest.mark.parametrize('classes', [range(2, 6), torch.tensor([2, 3, 7, 9])])
def test_columns_find_labels(classes):
    columns = ClassSubset(classes, 10)
    labels = torch.arange(10).view(5, 2)
    positions, here = columns.find(labels)
    assert positions.min() >= 0
    assert positions.max() < len(columns)
    numbers = [int(number) for number in classes]
    assert here.flatten().tolist() == [label in numbers for label in range(10)]
    assert torch.equal(columns.numbers(positions)[here], labels[here])
    assert torch.equal(columns.of(10 * torch.arange(10)), 10 * torch.tensor(numbers))


@pytest.mark.parametrize('classes', [range(3, 5), torch.tensor([3, 8])])
@pytest.mark.parametrize('labels', [[[3, 9, 0]], [[9, 3, 8]], [[0, 1, 2]], [[8, 8, 3]], [[4, 3, 3]]])
def test_labels_of_other_parts_disturb_no_column(classes, labels):
    numbers = [int(number) for number in classes]
    values = torch.tensor([[1.0, 2.0]])
    places = LabelIndex(torch.tensor(labels), ClassSubset(classes, 10))
    expected_taken = [values[0, numbers.index(label)].item() if label in numbers else 0.0 for label in labels[0]]
    assert places.take(values).tolist() == [expected_taken]
    written = values.clone()
    places.put(written, slice(0, 1), -7.0)
    assert written.tolist() == [[-7.0 if c in labels[0] else values[0, j].item() for j, c in enumerate(numbers)]]
    added = values.clone()
    places.add(added, slice(0, 1), torch.tensor([[10.0, 100.0, 1000.0]]))
    expected_added = values.clone()
    for label, number in zip(labels[0], (10.0, 100.0, 1000.0), strict=True):
        if label in numbers:
            expected_added[0, numbers.index(label)] += number
    assert torch.equal(added, expected_added)


@pytest.mark.parametrize('seed', range(3))
@every_loss
def test_drawn_classes_are_all_there_is(name, seed):
    """The loss of a sample of the classes is that of a classifier with these classes alone."""
    classes = torch.tensor([0, 1, 2, 4, 5])  # those with images
    random = torch.Generator().manual_seed(seed)
    logits, features = torch.randn(2, 7, 5, dtype=torch.float64, generator=random)
    counts = torch.tensor(COUNTS)
    rows = torch.randint(5, (7, 2), generator=random)
    loss, alone = CASES[name].make(counts), CASES[name].make(counts[classes])
    extra = (features,) if loss.uses_features else ()
    part = ShardedLogits(logits.clone().requires_grad_(), ClassSubset(classes, len(COUNTS)))
    if isinstance(loss, LabelAwareSmoothing) or getattr(loss, 'label_smoothing', 0):
        with pytest.raises(ValueError, match='mean over all classes'):
            loss(part, classes[rows], *extra)
        return
    leaf = logits.clone().requires_grad_()
    found, expected = loss(part, classes[rows], *extra), alone(leaf, rows, *extra)
    torch.testing.assert_close(found, expected, **EXACT)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(part.values.grad, leaf.grad, **EXACT)


def test_half_precision_parts_have_half_precision_gradients():
    values = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
    logits = ShardedLogits(values, ClassSubset(range(4), 4))
    losses = CrossEntropy()(logits, torch.tensor([0, 1, 3]))
    assert losses.dtype == torch.float32
    losses.sum().backward()
    assert values.grad.dtype == torch.bfloat16


def test_partial_logits_look_like_those_of_all_classes():
    logits = ShardedLogits(torch.zeros(3, 4, dtype=torch.float64), ClassSubset(range(2, 6), 10))
    assert (len(logits), logits.shape, logits.dtype) == (3, (3, 10), torch.float64)
    assert logits.device.type == 'cpu'


@pytest.mark.parametrize('classes', [range(3, 3), torch.tensor([], dtype=torch.int64)])
def test_a_part_without_classes_is_refused(classes):
    with pytest.raises(ValueError, match='at least one'):
        ClassSubset(classes, 10)
