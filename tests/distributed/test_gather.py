"""All-gather with gradients, compared with the gradients of a single process."""

import pytest
import torch

from lib.distributed.gather import gather_features, gather_features_replicated, gather_rows, local_rows
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from tests.ranks import run_ranks

NUM_FEATURES, NUM_CLASSES = 4, 6
WITH_PAIR_LOSS = (False, True)
# Number of ranks -> rows per rank: equal, uneven, none on some ranks, none on all ranks.
SIZES = {2: [(3, 3), (4, 1), (0, 3), (2, 0), (0, 0)], 3: [(2, 2, 2), (1, 3, 2), (0, 4, 0), (0, 0, 1), (0, 0, 0)]}


def inputs(sizes):
    random = torch.Generator().manual_seed(sum(size * 10**rank for rank, size in enumerate(sizes)))
    images = torch.randn(sum(sizes), 3, generator=random, dtype=torch.float64)
    backbone = torch.randn(3, NUM_FEATURES, generator=random, dtype=torch.float64)
    weight = torch.randn(NUM_CLASSES, NUM_FEATURES, generator=random, dtype=torch.float64)
    # A different factor in the loss for every image and class.
    factors = torch.randn(sum(sizes), NUM_CLASSES, generator=random, dtype=torch.float64)
    return images, backbone, weight, factors


def head(features, weight, factors):
    return (torch.tanh(features @ weight.T) * factors).sum()


def pair_loss(features):
    """A loss of all pairs of images, computed on every rank; the gradient of an image depends on all others."""
    return (features @ features.T).sin().sum()


def slice_of(sizes, rank):
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def gathered(rank, count):
    """Return the gathered rows of several dtypes, and gradients without and with the pair loss, of one rank."""
    return {
        'rows': [rows_of(rank, count, sizes) for sizes in SIZES[count]],
        **{
            str(with_pairs): [gradients(rank, count, sizes, with_pairs) for sizes in SIZES[count]]
            for with_pairs in WITH_PAIR_LOSS
        },
    }


def rows_of(rank, count, sizes):
    mine, total = slice_of(sizes, rank), sum(sizes)
    numbers, booleans = torch.arange(2 * total).reshape(-1, 2)[mine], (torch.arange(total) % 2 == 0)[mine]
    transposed = numbers.float().T.contiguous().T  # not contiguous
    return [gather_rows(rows, sizes, ProcessGroup(rank, count)) for rows in (numbers, booleans, transposed)]


def gradients(rank, count, sizes, with_pairs):
    group, mine = ProcessGroup(rank, count), slice_of(sizes, rank)
    classes = group.shard(NUM_CLASSES)
    images, backbone, weight, factors = inputs(sizes)
    backbone.requires_grad_()
    features = images[mine] @ backbone
    features.retain_grad()
    gathered_features = gather_features(features, sizes, group)
    weight_shard = weight[classes].clone().requires_grad_()
    loss = head(gathered_features, weight_shard, factors[:, classes])
    if with_pairs:
        loss = loss + pair_loss(gather_features_replicated(features, sizes, group))
    loss.backward()
    return {
        'gathered_features': gathered_features.detach(),
        'local': local_rows(gathered_features.detach(), sizes, group),
        'features before': features.detach(),
        'features': features.grad,
        # The average, as in DistributedDataParallel.
        'backbone': group.all_reduce(backbone.grad) / count,
        'weight': weight_shard.grad,
    }


def expected(sizes, with_pairs):
    images, backbone, weight, factors = inputs(sizes)
    backbone.requires_grad_()
    weight.requires_grad_()
    features = images @ backbone
    features.retain_grad()
    loss = head(features, weight, factors)
    if with_pairs:
        loss = loss + pair_loss(features)
    loss.backward()
    return features.detach(), features.grad, backbone.grad, weight.grad


def check(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.fixture(scope='module', params=[3, pytest.param(2, marks=pytest.mark.slow)])
def per_rank(request, tmp_path_factory):
    return run_ranks(gathered, request.param, tmp_path_factory.mktemp('ranks'))


@pytest.mark.parametrize('with_pairs', WITH_PAIR_LOSS)
def test_gradients_equal_a_single_process(per_rank, with_pairs):
    count = len(per_rank)
    for number, sizes in enumerate(SIZES[count]):
        features, of_features, of_backbone, of_weight = expected(sizes, with_pairs)
        for rank in range(count):
            result = per_rank[rank][str(with_pairs)][number]
            check(result['gathered_features'], features)
            assert torch.equal(result['local'], result['features before'])
            # Multiplied by the number of ranks, because the average over the ranks divides by it.
            check(result['features'], count * of_features[slice_of(sizes, rank)])
            check(result['backbone'], of_backbone)
            check(result['weight'], of_weight[ProcessGroup(rank, count).shard(NUM_CLASSES)])


def test_rows_of_any_dtype_and_number(per_rank):
    for result in per_rank:
        for (numbers, booleans, transposed), sizes in zip(result['rows'], SIZES[len(per_rank)], strict=True):
            assert torch.equal(numbers, torch.arange(2 * sum(sizes)).reshape(-1, 2))
            assert torch.equal(booleans, torch.arange(sum(sizes)) % 2 == 0)
            assert torch.equal(transposed, numbers.float())


def test_single_process_returns_the_same():
    features = torch.randn(3, NUM_FEATURES, generator=torch.Generator().manual_seed(0), requires_grad=True)
    factors = torch.randn(3, NUM_FEATURES, generator=torch.Generator().manual_seed(1))
    for gather in (gather_features, gather_features_replicated):
        result = gather(features, [3], SINGLE_PROCESS)
        assert torch.equal(result, features)
        (gradient,) = torch.autograd.grad((result * factors).sum(), features)
        assert torch.equal(gradient, factors)
    assert torch.equal(local_rows(features, [3], SINGLE_PROCESS), features)
