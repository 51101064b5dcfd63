"""Gradient clipping against torch's clip_grad_norm_, with and without sharded parameters."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import clip_grad_norm_

from lib.distributed.process_group import ProcessGroup
from lib.optim.gradients import clip_gradients
from tests.ranks import run_ranks


def parameters_with_gradients(seed: int, shapes=((4, 3), (5,), (2, 3, 3, 3)), scale=1.0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return parameters


@dataclass(frozen=True)
class Two(ProcessGroup):
    """One of two ranks; the other rank adds `others` to every sum."""

    world_size: int = 2
    others: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    def all_reduce(self, tensor):
        return tensor + self.others


@given(seed=st.integers(0, 99), max_norm=st.sampled_from([1e-3, 0.5, 3.0, 1e3]))
def test_single_process_equals_torch(seed, max_norm):
    ours, theirs = (parameters_with_gradients(seed) for _ in range(2))
    norm, expected = clip_gradients(iter(ours), max_norm), clip_grad_norm_(theirs, max_norm)
    assert torch.equal(norm, expected)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('max_norm', [0.1, 1e4])
@pytest.mark.parametrize('cut', [0, 1, 4])
def test_sharded_rows_and_replicated_parameters_count_once(seed, max_norm, cut):
    whole = parameters_with_gradients(seed)
    matrix = whole[0].grad.clone()
    expected = clip_grad_norm_(whole, max_norm)
    for mine, others in ((slice(0, cut), slice(cut, 4)), (slice(cut, 4), slice(0, cut))):
        shard = nn.Parameter(torch.zeros_like(matrix[mine]))
        shard.grad = matrix[mine].clone()
        replicated = parameters_with_gradients(seed)[1:]
        group = Two(others=matrix[others].square().sum())
        # `parameters` may include the sharded ones.
        norm = clip_gradients([shard, *replicated], max_norm, sharded=[shard], group=group)
        torch.testing.assert_close(norm, expected)
        torch.testing.assert_close(shard.grad, whole[0].grad[mine])
        for one, other in zip(replicated, whole[1:], strict=True):
            torch.testing.assert_close(one.grad, other.grad)


def test_parameters_without_gradient_are_ignored():
    parameters = [*parameters_with_gradients(0), nn.Parameter(torch.ones(3))]
    expected = torch.cat([p.grad.flatten() for p in parameters[:-1]]).norm()
    torch.testing.assert_close(clip_gradients(parameters, 1e9), expected)
    assert parameters[-1].grad is None
    empty = nn.Parameter(torch.ones(3))
    assert clip_gradients([empty], 1.0) == 0
    norm = clip_gradients(parameters, 1.0, sharded=[empty], group=Two(others=torch.tensor(4.0)))
    torch.testing.assert_close(norm, torch.sqrt(expected**2 + 4))


def clip_on_a_rank(rank: int, count: int) -> list[torch.Tensor]:
    """Return the norm, the clipped gradient of the rank's rows and those of replicated parameters."""
    replicated, whole = parameters_with_gradients(1)[1:], parameters_with_gradients(1)[0]
    group = ProcessGroup(rank, count)
    shard = nn.Parameter(torch.zeros(2, 3))
    shard.grad = whole.grad[group.shard(4)].clone()
    norm = clip_gradients(replicated, 0.5, sharded=[shard], group=group)
    return [norm, shard.grad, *(p.grad for p in replicated)]


@pytest.mark.process
def test_two_processes(tmp_path):
    found = run_ranks(clip_on_a_rank, 2, tmp_path)
    whole = parameters_with_gradients(1)
    expected = clip_grad_norm_(whole, 0.5)
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][0], expected)
    torch.testing.assert_close(torch.cat([found[0][1], found[1][1]]), whole[0].grad)
    for rank in found:
        for one, other in zip(rank[2:], whole[1:], strict=True):
            torch.testing.assert_close(one, other.grad)
