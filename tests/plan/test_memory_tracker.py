"""The count of bytes that are alive, beside counts by hand."""

import torch
from torch import nn

from lib.plan.memory_tracker import MemoryTracker, into_memoryless, memoryless, num_bytes


def test_counts_what_is_alive_and_forgets_what_is_not():
    with memoryless(), MemoryTracker() as live:
        first = torch.empty(1000)
        second = first + 1
        assert live.now == 8000
        view = second.view(10, 100)
        second.mul_(2)
        assert live.now == 8000
        del second
        assert live.now == 8000  # the view holds it
        del view, first
        assert live.now == 0
    assert live.peak == 8000


def test_what_was_there_does_not_count():
    with memoryless():
        known = torch.empty(1000)
        with MemoryTracker([known]) as live:
            other = known.view(-1)
            known.add_(1)
            assert (live.now, live.peak) == (0, 0)
            assert other.shape == known.shape


def test_nothing_is_allocated():
    with memoryless():
        huge = torch.empty(2**45)  # 128 TiB
        assert num_bytes([huge, huge[:5], huge]) == 2**47


def test_a_module_keeps_what_it_is():
    """A tied parameter stays one; strides, dtypes and what is trained stay as they are."""
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
