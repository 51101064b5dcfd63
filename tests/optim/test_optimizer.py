"""Parameters of an optimizer and their weight decay."""

import pytest
import torch
from torch import nn

from lib.errors import UserError
from lib.optim.optimizer import create_optimizer


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ('kind', 'expected'), [('sgd', torch.optim.SGD), ('adam', torch.optim.Adam), ('adamw', torch.optim.AdamW)]
)
def test_kind(kind, expected):
    optimizer = create_optimizer(model(), kind=kind, lr=0.1, weight_decay=0.01)
    assert type(optimizer) is expected
    assert [group['weight_decay'] for group in optimizer.param_groups] == [0.01]
    assert len(optimizer.param_groups[0]['params']) == 6


def test_norms_and_biases_without_decay():
    net = model()
    optimizer = create_optimizer(net, kind='sgd', lr=0.1, weight_decay=0.01, decay_norm_and_bias=False)
    decayed, others = optimizer.param_groups
    assert [id(p) for p in decayed['params']] == [id(net[0].weight), id(net[3].weight)]
    assert [id(p) for p in others['params']] == [id(p) for p in (net[0].bias, net[1].weight, net[1].bias, net[3].bias)]
    assert (decayed['weight_decay'], others['weight_decay']) == (0.01, 0.0)


def test_frozen_parameters_are_excluded():
    net = model()
    net[:3].requires_grad_(False)
    optimizer = create_optimizer(net, kind='adamw', lr=0.1)
    assert [id(p) for p in optimizer.param_groups[0]['params']] == [id(net[3].weight), id(net[3].bias)]


def test_nesterov_step_equals_the_formula():
    parameter = nn.Parameter(torch.tensor([2.0]))
    holder = nn.ParameterList([parameter])
    optimizer = create_optimizer(holder, kind='sgd', lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.5)
    parameter.grad = torch.tensor([3.0])
    optimizer.step()
    gradient = 3.0 + 0.5 * 2.0
    assert parameter.item() == pytest.approx(2.0 - 0.1 * (gradient + 0.9 * gradient))


def test_mistakes_name_their_key():
    with pytest.raises(UserError, match=r'OPTIMIZER.NESTEROV.*MOMENTUM'):
        create_optimizer(model(), kind='sgd', lr=0.1, momentum=0.0, nesterov=True)
    with pytest.raises(UserError, match=r"'lion'.*sgd, adam, adamw"):
        create_optimizer(model(), kind='lion', lr=0.1)
