"""The limit on the norms of rows."""

import pytest
import torch
from torch import nn

from lib.optim.optimizer import project_to_max_norm


@pytest.mark.parametrize('kind', [torch.optim.SGD, torch.optim.AdamW])
def test_rows_are_scaled_down_after_each_step(kind):
    torch.manual_seed(0)
    layer, free = nn.Linear(4, 6), nn.Linear(4, 6)
    free.load_state_dict(layer.state_dict())
    limited, other = kind(layer.parameters(), lr=0.3), kind(free.parameters(), lr=0.3)
    project_to_max_norm(limited, layer.weight, 0.6)
    images = torch.randn(8, 4)
    for module, optimizer in ((layer, limited), (free, other)):
        (module(images) * torch.tensor([-9.0, 5.0, 0.0, 0.0, 0.1, -0.1])).sum().backward()
        optimizer.step()
    norms = free.weight.norm(dim=1, keepdim=True)
    assert (norms > 0.6).any()
    assert (norms < 0.6).any()
    torch.testing.assert_close(layer.weight, free.weight * (0.6 / norms).clamp_max(1))
    torch.testing.assert_close(layer.bias, free.bias)


def test_limit_holds_over_many_steps():
    torch.manual_seed(1)
    layer = nn.Linear(3, 5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    project_to_max_norm(optimizer, layer.weight, 0.25)
    for _ in range(20):
        optimizer.zero_grad()
        layer(torch.randn(4, 3)).square().sum().neg().backward()
        optimizer.step()
        assert layer.weight.norm(dim=1).max() <= 0.25 * (1 + 1e-6)
    assert layer.weight.requires_grad
