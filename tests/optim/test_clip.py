"""The common limit on gradients against torch's clip_grad_norm_, with rows that several ranks hold."""

import os
from dataclasses import dataclass, field

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import clip_grad_norm_

from lib.distributed.process_group import ProcessGroup
from lib.optim.gradients import clip_gradients


def parameters_with_gradients(seed: int, shapes=((4, 3), (5,), (2, 3, 3, 3)), scale=1.0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return parameters


@dataclass(frozen=True)
class Two(ProcessGroup):
    """One of two ranks, of which the other's part of every sum is known."""

    world_size: int = 2
    others: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    def all_reduce(self, tensor):
        return tensor + self.others


@given(seed=st.integers(0, 99), max_norm=st.sampled_from([1e-3, 0.5, 3.0, 1e3]))
def test_alone_it_is_torchs(seed, max_norm):
    ours, theirs = (parameters_with_gradients(seed) for _ in range(2))
    norm, expected = clip_gradients(iter(ours), max_norm), clip_grad_norm_(theirs, max_norm)
    assert torch.equal(norm, expected)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('max_norm', [0.1, 1e4])
@pytest.mark.parametrize('cut', [0, 1, 4])
def test_rows_of_two_ranks_count_once_each_and_the_rest_once(seed, max_norm, cut):
    whole = parameters_with_gradients(seed)
    matrix = whole[0].grad.clone()
    expected = clip_grad_norm_(whole, max_norm)
    for mine, others in ((slice(0, cut), slice(cut, 4)), (slice(cut, 4), slice(0, cut))):
        part = nn.Parameter(torch.zeros_like(matrix[mine]))
        part.grad = matrix[mine].clone()
        common = parameters_with_gradients(seed)[1:]
        group = Two(others=matrix[others].square().sum())
        # All parameters of a model may be given, the sharded ones among them.
        norm = clip_gradients([part, *common], max_norm, sharded=[part], group=group)
        torch.testing.assert_close(norm, expected)
        torch.testing.assert_close(part.grad, whole[0].grad[mine])
        for one, other in zip(common, whole[1:], strict=True):
            torch.testing.assert_close(one.grad, other.grad)


def test_parameters_without_a_gradient_are_passed_over():
    parameters = [*parameters_with_gradients(0), nn.Parameter(torch.ones(3))]
    expected = torch.cat([p.grad.flatten() for p in parameters[:-1]]).norm()
    torch.testing.assert_close(clip_gradients(parameters, 1e9), expected)
    assert parameters[-1].grad is None
    empty = nn.Parameter(torch.ones(3))
    assert clip_gradients([empty], 1.0) == 0
    norm = clip_gradients(parameters, 1.0, sharded=[empty], group=Two(others=torch.tensor(4.0)))
    torch.testing.assert_close(norm, torch.sqrt(expected**2 + 4))


def _clip_on_a_rank(rank: int, path: str) -> None:
    os.environ['OMP_NUM_THREADS'] = '1'
    dist.init_process_group('gloo', init_method=f'file://{path}', rank=rank, world_size=2)
    try:
        common, whole = parameters_with_gradients(1)[1:], parameters_with_gradients(1)[0]
        group = ProcessGroup(rank, 2)
        part = nn.Parameter(torch.zeros(2, 3))
        part.grad = whole.grad[group.shard(4)].clone()
        norm = clip_gradients(common, 0.5, sharded=[part], group=group)
        torch.save([norm, part.grad, *(p.grad for p in common)], f'{path}.{rank}')
    finally:
        dist.destroy_process_group()


def test_on_two_real_ranks(tmp_path):
    path = str(tmp_path / 'meet')
    mp.spawn(_clip_on_a_rank, (path,), nprocs=2)
    whole = parameters_with_gradients(1)
    expected = clip_grad_norm_(whole, 0.5)
    found = [torch.load(f'{path}.{rank}', weights_only=True) for rank in range(2)]
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][0], expected)
    torch.testing.assert_close(torch.cat([found[0][1], found[1][1]]), whole[0].grad)
    for rank in found:
        for one, other in zip(rank[2:], whole[1:], strict=True):
            torch.testing.assert_close(one, other.grad)
