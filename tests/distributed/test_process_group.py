"""Shards of the work, and collective operations of real processes."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from lib.distributed.gather import gather_features, gather_features_replicated, gather_rows, local_rows
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup, join_process_group
from tests.ranks import run_ranks

SIZES = (4, 0, 1)  # rows of each rank


@given(st.integers(0, 300), st.integers(1, 20))
def test_shards_are_a_partition(total, count):
    for shard, max_difference in ((ProcessGroup.shard, 1), (ProcessGroup.shard_pairs, 2)):
        shards = [shard(ProcessGroup(rank, count), total) for rank in range(count)]
        assert [row for part in shards for row in range(part.start, part.stop)] == list(range(total))
        lengths = [part.stop - part.start for part in shards]
        assert max(lengths) - min(lengths) <= max_difference


@given(st.integers(0, 150), st.integers(1, 20))
def test_pairs_stay_together(pairs, count):
    for rank in range(count):
        part = ProcessGroup(rank, count).shard_pairs(2 * pairs)
        assert part.start % 2 == part.stop % 2 == 0


@given(st.integers(0, 10**12), st.integers(1, 10**5))
def test_many_ranks_and_large_totals(total, count):
    """Each shard ends where the next one begins, and the last one ends at the total."""
    for rank in {0, count // 2, count - 1}:
        here, after = ProcessGroup(rank, count).shard(total), ProcessGroup(rank + 1, count).shard(total)
        assert here.stop == after.start
        assert here.stop - here.start in (total // count, -(-total // count))
    assert (ProcessGroup(0, count).shard(total).start, ProcessGroup(count - 1, count).shard(total).stop) == (0, total)


def test_without_torchrun_there_is_a_single_process(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'TORCHELASTIC_RUN_ID'):
        monkeypatch.delenv(name, raising=False)
    with join_process_group() as group:
        assert group is SINGLE_PROCESS
        assert not dist.is_initialized()


def test_collectives_of_a_single_process_return_its_values():
    tensor = torch.tensor([1.0, 2.0], requires_grad=True)
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.all_reduce(tensor) is tensor
    assert SINGLE_PROCESS.all_gather_objects('a') == ['a'] == SINGLE_PROCESS.gather_objects('a')
    assert list(SINGLE_PROCESS.map(str, range(3))) == ['0', '1', '2']
    assert SINGLE_PROCESS.all_gather(tensor).tolist() == [[1.0, 2.0]]
    assert not SINGLE_PROCESS.all_gather(tensor).requires_grad
    with SINGLE_PROCESS.main_first():
        SINGLE_PROCESS.barrier()


def collectives(rank, count, folder):
    group = ProcessGroup(rank, count)
    sent = torch.full((2,), float(rank))
    group.broadcast(sent)
    file = folder / 'order'
    with group.main_first(), open(file, 'a') as out:
        out.write(f'{rank}\n')
    group.barrier()
    return {
        'sum': group.all_reduce(torch.tensor([rank + 1.0], requires_grad=True)),
        'integers': group.all_reduce(torch.tensor([2**40 + rank])),
        'stack of empty': group.all_gather(torch.zeros(0, 3)),
        'gather': group.all_gather_objects([rank, 'x' * rank]),
        'to main': group.gather_objects(rank + 1),
        'map': list(group.map(lambda number: (number, rank), range(5))),
        'stack': group.all_gather(torch.tensor([[rank, 7]]).T),
        'sent': sent,
        'first': file.read_text().splitlines()[0],
        **_gathered(group),
    }


def _gathered(group):
    rows = torch.arange(2.0 * SIZES[group.rank]).view(-1, 2) + 10 * group.rank
    result = {'rows': gather_rows(rows, SIZES, group)}
    for name, gathers in (('features', gather_features), ('replicated', gather_features_replicated)):
        leaf = rows.clone().requires_grad_()
        everything = gathers(leaf, SIZES, group)
        result[f'{name} local'] = local_rows(everything, SIZES, group).detach()
        # Each rank computes another loss of the gathered rows.
        ((group.rank + 1) * everything.square()).sum().backward()
        result[f'{name} gradient'] = leaf.grad
    return result


@pytest.mark.process
def test_collectives_of_three_ranks(tmp_path):
    results = run_ranks(collectives, 3, tmp_path, tmp_path)
    rows = [torch.arange(2.0 * size).view(-1, 2) + 10 * rank for rank, size in enumerate(SIZES)]
    for rank, result in enumerate(results):
        assert result['sum'].tolist() == [6.0]
        assert not result['sum'].requires_grad
        assert result['integers'].tolist() == [3 * 2**40 + 3]
        assert result['stack of empty'].shape == (3, 0, 3)
        assert result['gather'] == [[0, ''], [1, 'x'], [2, 'xx']]
        assert result['to main'] == ([] if rank else [1, 2, 3])
        assert result['map'] == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1)]
        assert result['stack'].tolist() == [[[0], [7]], [[1], [7]], [[2], [7]]]
        assert result['sent'].tolist() == [0.0, 0.0]
        assert result['first'] == '0'
        torch.testing.assert_close(result['rows'], torch.cat(rows))
        for name in ('features', 'replicated'):
            torch.testing.assert_close(result[f'{name} local'], rows[rank])
        # The sum over all ranks, 1 + 2 + 3, and the gradient of this rank; both times 3, because DDP averages.
        torch.testing.assert_close(result['features gradient'], 3 * 6 * 2 * rows[rank])
        torch.testing.assert_close(result['replicated gradient'], 3 * (rank + 1) * 2 * rows[rank])


def first_raises_in_main_first(rank, count):
    group = ProcessGroup(rank, count)
    with group.main_first():
        if group.is_main:
            raise ValueError('on purpose')


@pytest.mark.process
def test_an_error_of_the_main_rank_does_not_hang_the_others(tmp_path):
    with pytest.raises(AssertionError, match='on purpose'):
        run_ranks(first_raises_in_main_first, 2, tmp_path, seconds=30)
