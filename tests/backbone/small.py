"""A small backbone and its weights under other names."""

import torch
from torch import nn


class Small(nn.Module):
    """A backbone with names as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        for name in ('layer1', 'layer2', 'layer3'):
            setattr(self, name, nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 4)))


def random_weights() -> dict[str, torch.Tensor]:
    """Return random weights, also in BatchNorm's statistics, so that swapped tensors are detected."""
    torch.manual_seed(3)
    return {key: torch.rand(value.shape).to(value.dtype) for key, value in Small().state_dict().items()}


def other(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights that differ from `state` everywhere."""
    return {key: value + 1 for key, value in state.items()}


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the weights with a prefix before each key."""
    return {prefix + key: value for key, value in state.items()}


def equal(backbone: nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    """Return whether the backbone has exactly these weights."""
    return all(torch.equal(value, weights[key]) for key, value in backbone.state_dict().items())
