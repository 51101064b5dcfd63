"""Which device and precision are picked; GPUs are imagined."""

import pytest
import torch
from torch import nn

from lib.errors import UserError
from lib.runtime import device as module
from lib.runtime.device import Device, pick_device


@pytest.fixture
def machine(monkeypatch):
    """Imagine a machine: number of GPUs, their compute capability, whether there is MPS, the CPU's flags."""

    def imagine(gpus=0, capability=(8, 0), mps=False, flags=(), architecture='x86_64'):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda number: capability)
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda number: 'GPU X')
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
        monkeypatch.setattr(module.platform, 'machine', lambda: architecture)
        monkeypatch.setattr(module, '_cpu_flags', lambda: set(flags))

    return imagine


@pytest.mark.parametrize(
    ('has', 'name', 'main', 'replicas', 'dtype'),
    [
        ({}, 'auto', 'cpu', (), None),
        ({}, 'cpu', 'cpu', (), None),
        ({'flags': ['avx512_bf16']}, 'auto', 'cpu', (), torch.bfloat16),
        ({'flags': ['amx_bf16']}, 'auto', 'cpu', (), torch.bfloat16),
        ({'flags': ['bf16'], 'architecture': 'aarch64'}, 'auto', 'cpu', (), torch.bfloat16),
        ({'flags': ['bf16']}, 'auto', 'cpu', (), None),
        ({'architecture': 'arm64', 'mps': True}, 'auto', 'mps', (), None),
        ({'mps': True}, 'mps', 'mps', (), None),
        ({'mps': True}, 'cpu', 'cpu', (), None),
        ({'gpus': 1}, 'auto', 'cuda:0', (0,), torch.bfloat16),
        ({'gpus': 4}, 'auto', 'cuda:0', (0, 1, 2, 3), torch.bfloat16),
        ({'gpus': 4}, 'cuda', 'cuda:0', (0, 1, 2, 3), torch.bfloat16),
        ({'gpus': 4}, 'cuda:2', 'cuda:2', (2,), torch.bfloat16),
        ({'gpus': 1, 'mps': True}, 'auto', 'cuda:0', (0,), torch.bfloat16),
        ({'gpus': 1, 'capability': (7, 5)}, 'auto', 'cuda:0', (0,), None),
        ({'gpus': 1}, 'cpu', 'cpu', (), None),
    ],
)
def test_what_is_picked(machine, has, name, main, replicas, dtype):
    machine(**has)
    assert pick_device(name) == Device(torch.device(main), replicas, train_dtype=dtype, eval_dtype=None)


@pytest.mark.parametrize(
    ('has', 'name', 'words'),
    [
        ({}, 'gpu', ["RUN.DEVICE is 'gpu'", "'cuda:N'"]),
        ({}, '', ["RUN.DEVICE is ''"]),
        ({}, 'cpu:0', ["RUN.DEVICE is 'cpu:0'"]),
        ({'gpus': 2}, 'cuda:x', ["RUN.DEVICE is 'cuda:x'"]),
        ({'gpus': 2}, 'cuda:-1', ["RUN.DEVICE is 'cuda:-1'"]),
        ({'gpus': 2}, 'cuda:', ["RUN.DEVICE is 'cuda:'"]),
        ({'gpus': 2}, 'cuda:²', ["RUN.DEVICE is 'cuda:²'"]),
        ({'gpus': 2}, 'cuda:2', ['RUN.DEVICE is cuda:2', '2 CUDA devices', 'auto']),
        ({}, 'cuda', ['RUN.DEVICE is cuda', '0 CUDA devices', 'auto']),
        ({}, 'cuda:0', ['RUN.DEVICE is cuda:0', '0 CUDA devices']),
        ({}, 'mps', ['RUN.DEVICE is mps', 'auto']),
    ],
)
def test_what_is_not_there(machine, has, name, words):
    machine(**has)
    with pytest.raises(UserError) as caught:
        pick_device(name)
    assert all(word in str(caught.value) for word in words), caught.value


def test_precision_can_be_forced(machine):
    machine()
    forced = pick_device('cpu', 'bfloat16')
    assert (forced.train_dtype, forced.eval_dtype) == (torch.bfloat16, torch.bfloat16)
    machine(gpus=1)
    forced = pick_device('auto', 'float32')
    assert (forced.train_dtype, forced.eval_dtype) == (None, None)


def test_description(machine):
    machine(gpus=4)
    assert pick_device('auto').describe(training=True) == '4 GPUs (GPU X), bfloat16'
    assert pick_device('cuda:1').describe(training=True) == 'cuda:1 (GPU X), bfloat16'
    assert pick_device('cuda:1').describe(training=False) == 'cuda:1 (GPU X), float32'
    assert pick_device('cpu').describe(training=True) == 'cpu, float32'


def test_one_device_needs_no_replicas(machine):
    model = nn.Linear(1, 1)
    for has in ({}, {'gpus': 1}):
        machine(**has)
        assert pick_device('auto').parallel(model) is model


def test_cpu_flags_of_this_machine():
    assert all(isinstance(flag, str) for flag in module._cpu_flags())
