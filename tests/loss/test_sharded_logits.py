"""Losses of logits sharded by class against the unsharded loss; ClassSubset and LabelIndex."""

import itertools

import pytest
import torch

from lib.loss.cross_entropy import CrossEntropy
from lib.loss.label_aware_smoothing import LabelAwareSmoothing
from lib.loss.sharded_logits import ClassSubset, LabelIndex, ShardedLogits
from tests.loss.cases import CASES, COUNTS
from tests.loss.classifier_loss import LABEL_KINDS, Classifier, classifier_and_targets, weighted_loss, whole
from tests.loss.on_ranks import CHUNKS, SEED, SHARD_EDGES, everything
from tests.ranks import run_ranks

every_loss = pytest.mark.parametrize('name', CASES)
EXACT = {'rtol': 1e-10, 'atol': 1e-10}


@pytest.fixture(scope='module', params=[2, pytest.param(3, marks=pytest.mark.slow)])
def rank_results(request, tmp_path_factory):
    """Return the results of each of two or three ranks."""
    return run_ranks(everything, request.param, tmp_path_factory.mktemp('ranks'), 5)


@every_loss
def test_shards_equal_the_whole(name, rank_results):
    """Loss, predictions and all gradients are equal, chunked or not."""
    for kind, chunk in itertools.product(LABEL_KINDS, CHUNKS):
        expected = whole(weighted_loss(name, weighted=chunk == 4), *classifier_and_targets(SEED, kind))
        for cuts in range(len(SHARD_EDGES[len(rank_results)])):
            found = [rank['shards'][f'{name} {kind} {cuts} {chunk}'] for rank in rank_results]
            for shard in found:
                torch.testing.assert_close(shard['loss'], expected['loss'], **EXACT)
                assert torch.equal(shard.get('predicted', expected['predicted']), expected['predicted'])
            features = sum(shard['features'] for shard in found)
            torch.testing.assert_close(features, expected['features'], **EXACT)
            for rows in Classifier._fields[1:]:
                torch.testing.assert_close(torch.cat([shard[rows] for shard in found]), expected[rows], **EXACT)


def test_shards_draw_the_same_random_numbers(rank_results):
    for rank in rank_results:
        torch.testing.assert_close(rank['random']['shard'], rank_results[0]['random']['whole'], **EXACT)


def test_hard_labels_equal_torch_loss_parallel(rank_results):
    for rank in rank_results:
        found = rank['loss_parallel']
        torch.testing.assert_close(found['our_loss'], found['their_loss'], **EXACT)
        torch.testing.assert_close(found['our_gradient'], found['their_gradient'], **EXACT)


@pytest.mark.parametrize('classes', [range(2, 6), torch.tensor([2, 3, 7, 9])])
def test_class_subset_maps_labels_to_columns(classes):
    subset = ClassSubset(classes, 10)
    labels = torch.arange(10).view(5, 2)
    columns, is_local = subset.to_columns(labels)
    assert columns.min() >= 0
    assert columns.max() < len(subset)
    local = [int(label) for label in classes]
    assert is_local.flatten().tolist() == [label in local for label in range(10)]
    assert torch.equal(subset.to_classes(columns)[is_local], labels[is_local])
    assert torch.equal(subset.select(10 * torch.arange(10)), 10 * torch.tensor(local))


@pytest.mark.parametrize('classes', [range(3, 5), torch.tensor([3, 8])])
@pytest.mark.parametrize('labels', [[[3, 9, 0]], [[9, 3, 8]], [[0, 1, 2]], [[8, 8, 3]], [[4, 3, 3]]])
def test_labels_of_other_shards_change_no_column(classes, labels):
    local = [int(label) for label in classes]
    values = torch.tensor([[1.0, 2.0]])
    label_index = LabelIndex(torch.tensor(labels), ClassSubset(classes, 10))
    expected_gathered = [values[0, local.index(label)].item() if label in local else 0.0 for label in labels[0]]
    assert label_index.gather(values).tolist() == [expected_gathered]
    filled = values.clone()
    label_index.fill_(filled, slice(0, 1), -7.0)
    assert filled.tolist() == [[-7.0 if c in labels[0] else values[0, j].item() for j, c in enumerate(local)]]
    added = values.clone()
    label_index.add_(added, slice(0, 1), torch.tensor([[10.0, 100.0, 1000.0]]))
    expected_added = values.clone()
    for label, value in zip(labels[0], (10.0, 100.0, 1000.0), strict=True):
        if label in local:
            expected_added[0, local.index(label)] += value
    assert torch.equal(added, expected_added)


@pytest.mark.parametrize('seed', range(3))
@every_loss
def test_sampled_classes_equal_a_classifier_of_these_classes(name, seed):
    """The loss over sampled classes is that of a classifier with only these classes."""
    classes = torch.tensor([0, 1, 2, 4, 5])  # the classes with images
    random = torch.Generator().manual_seed(seed)
    logits, features = torch.randn(2, 7, 5, dtype=torch.float64, generator=random)
    counts = torch.tensor(COUNTS)
    rows = torch.randint(5, (7, 2), generator=random)
    loss, small_loss = CASES[name].make(counts), CASES[name].make(counts[classes])
    extra = (features,) if loss.uses_features else ()
    shard = ShardedLogits(logits.clone().requires_grad_(), ClassSubset(classes, len(COUNTS)))
    if isinstance(loss, LabelAwareSmoothing) or getattr(loss, 'label_smoothing', 0):
        with pytest.raises(ValueError, match='mean over all classes'):
            loss(shard, classes[rows], *extra)
        return
    leaf = logits.clone().requires_grad_()
    found, expected = loss(shard, classes[rows], *extra), small_loss(leaf, rows, *extra)
    torch.testing.assert_close(found, expected, **EXACT)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(shard.values.grad, leaf.grad, **EXACT)


def test_half_precision_shards_have_half_precision_gradients():
    values = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
    logits = ShardedLogits(values, ClassSubset(range(4), 4))
    losses = CrossEntropy()(logits, torch.tensor([0, 1, 3]))
    assert losses.dtype == torch.float32
    losses.sum().backward()
    assert values.grad.dtype == torch.bfloat16


def test_sharded_logits_report_the_shape_of_all_classes():
    logits = ShardedLogits(torch.zeros(3, 4, dtype=torch.float64), ClassSubset(range(2, 6), 10))
    assert (len(logits), logits.shape, logits.dtype) == (3, (3, 10), torch.float64)
    assert logits.device.type == 'cpu'


@pytest.mark.parametrize('classes', [range(3, 3), torch.tensor([], dtype=torch.int64)])
def test_empty_class_subset_raises(classes):
    with pytest.raises(ValueError, match='at least one'):
        ClassSubset(classes, 10)
