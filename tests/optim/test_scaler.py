"""Loss scaling: halved after infinite gradients, saved in the checkpoint, synchronized over ranks."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lib.distributed.process_group import ProcessGroup
from lib.optim.gradients import create_grad_scaler
from lib.optim.optimizer import KINDS, create_optimizer

CPU = torch.device('cpu')


@dataclass(frozen=True)
class Two(ProcessGroup):
    """One of two ranks; the other's flag is `other`."""

    world_size: int = 2
    other: float = 0.0

    def all_reduce(self, tensor):
        return tensor + self.other


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def backward(model, scaler, images, factor=1.0):
    with torch.autocast('cpu', dtype=torch.float16):
        loss = model(images).float().square().mean()
    scaler.scale(loss * factor).backward()


def step(model, optimizer, scaler, images, factor=1.0):
    optimizer.zero_grad()
    backward(model, scaler, images, factor)
    scaler.step(optimizer)
    scaler.update()


def weights_of(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize('group', [ProcessGroup(), Two()])
@pytest.mark.parametrize('kind', KINDS)
def test_infinite_gradient_halves_the_scale_and_skips_the_step(kind, group):
    model, images = net(), torch.randn(4, 3, 6, 6)
    optimizer = create_optimizer(model, kind=kind, lr=1e-3, weight_decay=0.1)
    scaler = create_grad_scaler(CPU, enabled=True, group=group)
    before, scale = weights_of(model), scaler.get_scale()
    step(model, optimizer, scaler, images, factor=1e8)  # the first step, without optimizer state
    assert scaler.get_scale() == scale / 2
    assert all(torch.equal(one, other) for one, other in zip(before, weights_of(model), strict=True))
    step(model, optimizer, scaler, images)
    assert scaler.get_scale() == scale / 2
    after = weights_of(model)
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    # The skipped step has no effect: the next one is that of a new optimizer.
    fresh = net()
    with torch.no_grad():
        for mine, theirs in zip(fresh.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
    other = create_grad_scaler(CPU, enabled=True)
    other.load_state_dict(scaler.state_dict())
    step(fresh, create_optimizer(fresh, kind=kind, lr=1e-3, weight_decay=0.1), other, images)
    assert all(torch.equal(one, other) for one, other in zip(after, weights_of(fresh), strict=True))


@pytest.mark.parametrize('kind', KINDS)
def test_scaling_by_a_power_of_two_changes_nothing(kind):
    images, weights = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)), []
    for enabled in (False, True):
        model = net()
        optimizer = create_optimizer(model, kind=kind, lr=1e-3)
        scaler = create_grad_scaler(CPU, enabled=enabled)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model(images).square().mean()).backward()  # in float32
            scaler.step(optimizer)
            scaler.update()
        weights.append(weights_of(model))
    assert scaler.get_scale() == 2**16
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_the_scale_goes_through_a_file(tmp_path):
    model, images = net(), torch.randn(4, 3, 6, 6)
    optimizer = create_optimizer(model, kind='sgd', lr=1e-3)
    scaler = create_grad_scaler(CPU, enabled=True)
    for factor in (1e8, 1e8, 1.0):
        step(model, optimizer, scaler, images, factor)
    torch.save(scaler.state_dict(), tmp_path / 'scaler.pth')
    again = create_grad_scaler(CPU, enabled=True)
    again.load_state_dict(torch.load(tmp_path / 'scaler.pth', weights_only=True))
    assert again.get_scale() == 2**14
    assert again.state_dict() == scaler.state_dict()


@pytest.mark.parametrize('unscaled_before', [False, True])
@pytest.mark.parametrize(('mine', 'other'), [(False, 0.0), (False, 1.0), (True, 0.0), (True, 1.0)])
def test_ranks_skip_the_same_steps(mine, other, unscaled_before):
    """A step is skipped if one rank or both have non-finite gradients."""
    model, images = net(), torch.randn(4, 3, 6, 6)
    optimizer = create_optimizer(model, kind='sgd', lr=1e-3)
    scaler = create_grad_scaler(CPU, enabled=True, group=Two(other=other))
    before = weights_of(model)
    backward(model, scaler, images, 1e8 if mine else 1.0)
    if unscaled_before:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    skipped = mine or bool(other)
    assert scaler.get_scale() == 2**16 * (0.5 if skipped else 1.0)
    assert torch.equal(before[0], model[0].weight) is skipped


def test_rank_without_gradients_takes_part():
    layer = nn.Linear(2, 2)
    optimizer = create_optimizer(layer, kind='sgd', lr=0.1)
    scaler = create_grad_scaler(CPU, enabled=True, group=Two(other=1.0))
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2**15


def test_disabled_scaler_does_nothing():
    model, images = net(), torch.randn(4, 3, 6, 6)
    optimizer = create_optimizer(model, kind='sgd', lr=1e-3)
    scaler = create_grad_scaler(CPU, enabled=False)
    before = weights_of(model)
    step(model, optimizer, scaler, images)
    assert scaler.state_dict() == {}
    assert not torch.equal(before[0], model[0].weight)
