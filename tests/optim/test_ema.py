"""The EMA of the weights loadedst its closed form and torch's AveragedModel."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.optim.ema import ModelEMA


def small_net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return net.to(memory_format=torch.channels_last)


def train(net: nn.Module, num_steps: int, after_step) -> None:
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for _ in range(num_steps):
        optimizer.zero_grad()
        net(torch.randn(8, 3, 6, 6)).square().sum().backward()
        optimizer.step()
        after_step()


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('decay', [0.0, 0.5, 0.99])
def test_closed_form(seed, decay):
    """w_ema(t) = d^t w(0) + (1 - d) sum_i d^(t - i) w(i), in float64."""
    torch.manual_seed(seed)
    layer, num_steps = nn.Linear(3, 2).double(), 12
    weights = torch.randn(num_steps + 1, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weights[0])
        ema = ModelEMA(layer, decay)
        for step in range(1, num_steps + 1):
            layer.weight.copy_(weights[step])
            ema.update()
            expected = decay**step * weights[0]
            for past in range(1, step + 1):
                expected = expected + (1 - decay) * decay ** (step - past) * weights[past]
            torch.testing.assert_close(ema.state_dict()['weight'], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('seed', range(3))
def test_equals_torch_and_copies_batch_counters(seed):
    net = small_net(seed)
    ema = ModelEMA(net, 0.8)
    expected = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    expected.update_parameters(net)  # the first update of torch copies the weights

    def update():
        ema.update()
        expected.update_parameters(net)

    train(net, 5, update)
    ours, theirs = ema.state_dict(), expected.module.state_dict()
    assert list(ours) == list(net.state_dict())
    assert ours.pop('1.num_batches_tracked') == 5
    assert not torch.equal(ours['1.running_mean'], net[1].running_mean)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], msg=name)


def test_memory_format_and_frozen_weights_are_preserved():
    net = small_net(0)
    net[0].requires_grad_(False)
    frozen = net[0].weight.clone()
    ema = ModelEMA(net, 0.9)
    train(net, 4, ema.update)
    ema_state = ema.state_dict()
    assert torch.equal(ema_state['0.weight'], frozen)
    assert ema_state['0.weight'].is_contiguous(memory_format=torch.channels_last)
    assert ema_state['0.weight'].data_ptr() != net[0].weight.data_ptr()
    assert not any(value.requires_grad for value in ema_state.values())


@pytest.mark.parametrize('raises', [False, True])
def test_model_has_the_ema_only_within_the_context(raises):
    net = small_net(1)
    ema = ModelEMA(net, 0.9)
    train(net, 3, ema.update)
    ema_state = {name: value.clone() for name, value in ema.state_dict().items()}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    addresses = [value.data_ptr() for value in net.state_dict().values()]
    assert not torch.equal(before['0.weight'], ema_state['0.weight'])

    def evaluate():
        with ema.swapped():
            for name, value in net.state_dict().items():
                assert torch.equal(value, ema_state[name]), name
            if raises:
                raise RuntimeError('while evaluating')

    if raises:
        with pytest.raises(RuntimeError, match='while evaluating'):
            evaluate()
    else:
        evaluate()
    assert [value.data_ptr() for value in net.state_dict().values()] == addresses
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert torch.equal(ema.state_dict()[name], ema_state[name]), name
    assert net[0].weight.requires_grad


def test_loaded_ema_continues_identically(tmp_path):
    net = small_net(2)
    ema = ModelEMA(net, 0.7)
    train(net, 2, ema.update)
    torch.save(ema.state_dict(), tmp_path / 'ema.pth')
    loaded = ModelEMA(net, 0.7)
    loaded.load_state_dict(torch.load(tmp_path / 'ema.pth', weights_only=True))
    train(net, 2, lambda: (ema.update(), loaded.update()))
    for name, value in ema.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


@pytest.mark.parametrize('other', [nn.Linear(3, 4), nn.Linear(2, 3, bias=False)])
def test_ema_of_another_model_raises(other):
    ema = ModelEMA(nn.Linear(2, 3), 0.9)
    with pytest.raises(ValueError, match='other names or shapes'):
        ema.load_state_dict(other.state_dict())


def test_constant_entries_cost_nothing_and_change_nothing():
    """A frozen layer with running statistics: bit for bit the same EMA, also while it is swapped in."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    net[1].requires_grad_(False).eval()
    whole = ModelEMA(net, 0.9)
    restricted = ModelEMA(net, 0.9, constant={name for name in net.state_dict() if name.startswith('1.')})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for _ in range(3):
        with torch.no_grad():
            net[2].weight.add_(torch.randn(2, 4))
        whole.update()
        restricted.update()
    torch.testing.assert_close(restricted.state_dict(), whole.state_dict(), rtol=0, atol=0)
    with restricted.swapped():
        torch.testing.assert_close(dict(net.state_dict()), whole.state_dict(), rtol=0, atol=0)
    assert not torch.equal(net[2].weight, before['2.weight'])
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in before if not name.startswith('2.'))
