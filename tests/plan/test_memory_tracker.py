"""MemoryTracker against counts by hand."""

import torch
from torch import nn

from lib.plan.memory_tracker import MemoryTracker, into_memoryless, memoryless, num_bytes


def test_counts_live_storages():
    with memoryless(), MemoryTracker() as tracker:
        first = torch.empty(1000)
        second = first + 1
        assert tracker.current == 8000
        view = second.view(10, 100)
        second.mul_(2)
        assert tracker.current == 8000
        del second
        assert tracker.current == 8000  # the view keeps it alive
        del view, first
        assert tracker.current == 0
    assert tracker.peak == 8000


def test_existing_tensors_are_not_counted():
    with memoryless():
        existing = torch.empty(1000)
        with MemoryTracker([existing]) as tracker:
            other = existing.view(-1)
            existing.add_(1)
            assert (tracker.current, tracker.peak) == (0, 0)
            assert other.shape == existing.shape


def test_memoryless_allocates_nothing():
    with memoryless():
        huge = torch.empty(2**45)  # 128 TiB
        assert num_bytes([huge, huge[:5], huge]) == 2**47


def test_into_memoryless_preserves_the_module():
    """Tied parameters stay tied; strides, dtypes and requires_grad stay the same."""
    with torch.device('meta'):
        module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(4, 4), nn.Linear(4, 4))
    module.to(memory_format=torch.channels_last)
    module[3].weight = module[2].weight
    module[2].bias.requires_grad_(False)
    before = {name: (value.shape, value.stride(), value.dtype) for name, value in module.state_dict().items()}
    with memoryless():
        into_memoryless(module)
        assert {
            name: (value.shape, value.stride(), value.dtype) for name, value in module.state_dict().items()
        } == before
        assert module[3].weight is module[2].weight
        assert not module[2].bias.requires_grad
        assert all(value.device.type == 'cpu' for value in module.state_dict().values())
        assert module(torch.empty(2, 3, 6, 6)[..., :6]).shape == (2, 8, 4, 4)
