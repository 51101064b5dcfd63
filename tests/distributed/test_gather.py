"""The images of all ranks in one batch; gradients against those of one process."""

import pytest
import torch

from lib.distributed.gather import gather_features, gather_features_replicated, gather_rows, own_rows
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from tests.ranks import run_ranks

NUM_FEATURES, NUM_CLASSES = 4, 6
LOOKS = (False, True)
# By number of ranks: equal shares, uneven ones, ranks with none, nobody with any.
SIZES = {2: [(3, 3), (4, 1), (0, 3), (2, 0), (0, 0)], 3: [(2, 2, 2), (1, 3, 2), (0, 4, 0), (0, 0, 1), (0, 0, 0)]}


def inputs(sizes):
    random = torch.Generator().manual_seed(sum(size * 10**place for place, size in enumerate(sizes)))
    images = torch.randn(sum(sizes), 3, generator=random, dtype=torch.float64)
    backbone = torch.randn(3, NUM_FEATURES, generator=random, dtype=torch.float64)
    weight = torch.randn(NUM_CLASSES, NUM_FEATURES, generator=random, dtype=torch.float64)
    # What the loss makes of each logit is other for every image and class.
    factors = torch.randn(sum(sizes), NUM_CLASSES, generator=random, dtype=torch.float64)
    return images, backbone, weight, factors


def head(features, weight, factors):
    return (torch.tanh(features @ weight.T) * factors).sum()


def look(features):
    """What every rank computes alike of all features: pairs of images, so that no image's gradient is its own."""
    return (features @ features.T).sin().sum()


def slice_of(sizes, rank):
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def gathered(rank, count):
    """Run on every rank: rows of any type, and gradients without and with what is looked at."""
    return {
        'rows': [rows_of(rank, count, sizes) for sizes in SIZES[count]],
        **{str(look_too): [gradients(rank, count, sizes, look_too) for sizes in SIZES[count]] for look_too in LOOKS},
    }


def rows_of(rank, count, sizes):
    mine, total = slice_of(sizes, rank), sum(sizes)
    numbers, truths = torch.arange(2 * total).reshape(-1, 2)[mine], (torch.arange(total) % 2 == 0)[mine]
    transposed = numbers.float().T.contiguous().T  # has its numbers in another order in memory
    return [gather_rows(rows, sizes, ProcessGroup(rank, count)) for rows in (numbers, truths, transposed)]


def gradients(rank, count, sizes, look_too):
    group, mine = ProcessGroup(rank, count), slice_of(sizes, rank)
    classes = group.shard(NUM_CLASSES)
    images, backbone, weight, factors = inputs(sizes)
    backbone.requires_grad_()
    features = images[mine] @ backbone
    features.retain_grad()
    everyone = gather_features(features, sizes, group)
    part = weight[classes].clone().requires_grad_()
    loss = head(everyone, part, factors[:, classes])
    if look_too:
        loss = loss + look(gather_features_replicated(features, sizes, group))
    loss.backward()
    return {
        'everyone': everyone.detach(),
        'own': own_rows(everyone.detach(), sizes, group),
        'mine': features.detach(),
        'features': features.grad,
        # As DistributedDataParallel does.
        'backbone': group.all_reduce(backbone.grad) / count,
        'weight': part.grad,
    }


def expected(sizes, look_too):
    images, backbone, weight, factors = inputs(sizes)
    backbone.requires_grad_()
    weight.requires_grad_()
    features = images @ backbone
    features.retain_grad()
    loss = head(features, weight, factors)
    if look_too:
        loss = loss + look(features)
    loss.backward()
    return features.detach(), features.grad, backbone.grad, weight.grad


def check(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.fixture(scope='module', params=[3, pytest.param(2, marks=pytest.mark.slow)])
def per_rank(request, tmp_path_factory):
    return run_ranks(gathered, request.param, tmp_path_factory.mktemp('ranks'))


@pytest.mark.parametrize('look_too', LOOKS)
def test_gradients_are_those_of_one_process(per_rank, look_too):
    count = len(per_rank)
    for number, sizes in enumerate(SIZES[count]):
        features, of_features, of_backbone, of_weight = expected(sizes, look_too)
        for rank in range(count):
            found = per_rank[rank][str(look_too)][number]
            check(found['everyone'], features)
            assert torch.equal(found['own'], found['mine'])
            # Times the number of ranks, by which the mean of the backbone's gradients divides.
            check(found['features'], count * of_features[slice_of(sizes, rank)])
            check(found['backbone'], of_backbone)
            check(found['weight'], of_weight[ProcessGroup(rank, count).shard(NUM_CLASSES)])


def test_rows_of_any_type_and_number(per_rank):
    for found in per_rank:
        for (numbers, truths, transposed), sizes in zip(found['rows'], SIZES[len(per_rank)], strict=True):
            assert torch.equal(numbers, torch.arange(2 * sum(sizes)).reshape(-1, 2))
            assert torch.equal(truths, torch.arange(sum(sizes)) % 2 == 0)
            assert torch.equal(transposed, numbers.float())


def test_alone_nothing_is_changed():
    features = torch.randn(3, NUM_FEATURES, generator=torch.Generator().manual_seed(0), requires_grad=True)
    factors = torch.randn(3, NUM_FEATURES, generator=torch.Generator().manual_seed(1))
    for gather in (gather_features, gather_features_replicated):
        found = gather(features, [3], SINGLE_PROCESS)
        assert torch.equal(found, features)
        (gradient,) = torch.autograd.grad((found * factors).sum(), features)
        assert torch.equal(gradient, factors)
    assert torch.equal(own_rows(features, [3], SINGLE_PROCESS), features)
