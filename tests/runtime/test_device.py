"""Selection of device and precision; GPUs are simulated."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lib.config.defaults import KEYS
from lib.errors import UserError
from lib.runtime import device as module
from lib.runtime.device import DTYPES, Device, num_replicas, pick_device, seed_generators


@pytest.fixture
def machine(monkeypatch):
    """Return a function that simulates a machine: GPUs, their compute capability (one or a list), MPS, CPU flags."""

    def simulate(gpus=0, capability=(8, 0), mps=False, flags=(), architecture='x86_64', maker=''):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
        monkeypatch.setattr(
            torch.cuda,
            'get_device_capability',
            lambda number: (capability if isinstance(capability, list) else [capability] * gpus)[number],
        )
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda number: 'GPU X')
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
        monkeypatch.setattr(module.platform, 'machine', lambda: architecture)
        monkeypatch.setattr(module, '_cpu_flags', lambda: set(flags))
        monkeypatch.setattr(module, '_cpu_maker', lambda: maker)

    return simulate


@pytest.mark.parametrize(
    ('has', 'name', 'main', 'replicas', 'dtype'),
    [
        ({}, 'auto', 'cpu', (), None),
        ({}, 'cpu', 'cpu', (), None),
        ({'flags': ['avx512_bf16']}, 'auto', 'cpu', (), torch.bfloat16),
        ({'flags': ['amx_bf16']}, 'auto', 'cpu', (), torch.bfloat16),
        ({'flags': ['avx512_bf16'], 'maker': 'AuthenticAMD'}, 'auto', 'cpu', (), torch.bfloat16),
        ({'flags': ['avx512_bf16'], 'maker': 'GenuineIntel'}, 'auto', 'cpu', (), None),
        ({'flags': ['avx512_bf16', 'amx_bf16'], 'maker': 'GenuineIntel'}, 'auto', 'cpu', (), torch.bfloat16),
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
        ({'gpus': 1, 'capability': (9, 0)}, 'auto', 'cuda:0', (0,), torch.bfloat16),
        ({'gpus': 1, 'capability': (7, 5)}, 'auto', 'cuda:0', (0,), torch.float16),
        ({'gpus': 1, 'capability': (7, 0)}, 'auto', 'cuda:0', (0,), torch.float16),
        ({'gpus': 1, 'capability': (6, 1)}, 'auto', 'cuda:0', (0,), None),
        ({'gpus': 2, 'capability': [(8, 6), (7, 5)]}, 'auto', 'cuda:0', (0, 1), torch.float16),
        ({'gpus': 2, 'capability': [(6, 1), (8, 6)]}, 'auto', 'cuda:0', (0, 1), None),
        ({'gpus': 2, 'capability': [(6, 1), (8, 6)]}, 'cuda:1', 'cuda:1', (1,), torch.bfloat16),
        ({'gpus': 1}, 'cpu', 'cpu', (), None),
    ],
)
def test_device_and_precision(machine, has, name, main, replicas, dtype):
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
        ({'gpus': 2}, 'cuda:' + '1' * 5000, ["RUN.DEVICE is 'cuda:1111"]),
        ({'gpus': 2}, 'cuda:2', ['RUN.DEVICE is cuda:2', '2 CUDA devices', 'auto']),
        ({}, 'cuda', ['RUN.DEVICE is cuda', '0 CUDA devices', 'auto']),
        ({}, 'cuda:0', ['RUN.DEVICE is cuda:0', '0 CUDA devices']),
        ({}, 'mps', ['RUN.DEVICE is mps', 'auto']),
    ],
)
def test_invalid_and_missing_devices(machine, has, name, words):
    machine(**has)
    with pytest.raises(UserError) as caught:
        pick_device(name)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize('precision', DTYPES)
@pytest.mark.parametrize('has', [{}, {'gpus': 1}, {'gpus': 1, 'capability': (6, 1)}, {'mps': True}])
def test_precision_can_be_forced_anywhere(machine, has, precision):
    machine(**has)
    forced = pick_device('auto', precision)
    assert forced.train_dtype == forced.eval_dtype == DTYPES[precision]


def test_every_precision_can_be_forced():
    assert ('auto', *DTYPES) == KEYS['RUN.PRECISION'].choices


def test_only_float16_needs_loss_scaling(machine):
    machine()
    assert [
        pick_device('cpu', precision).needs_loss_scaling for precision in ('auto', 'float32', 'bfloat16', 'float16')
    ] == [
        False,
        False,
        False,
        True,
    ]
    machine(gpus=1, capability=(7, 5))
    assert pick_device().needs_loss_scaling


def test_description(machine):
    machine(gpus=4)
    assert pick_device('auto').describe(training=True) == '4 GPUs (GPU X), bfloat16'
    assert pick_device('cuda:1').describe(training=True) == 'cuda:1 (GPU X), bfloat16'
    assert pick_device('cuda:1').describe(training=False) == 'cuda:1 (GPU X), float32'
    assert pick_device('cpu').describe(training=True) == 'cpu, float32'
    assert pick_device('cpu', 'float16').describe(training=False) == 'cpu, float16'
    machine(gpus=1, capability=(7, 5))
    assert pick_device().describe(training=True) == 'cuda:0 (GPU X), float16'
    assert pick_device().describe(training=False) == 'cuda:0 (GPU X), float32'


def test_cached_features_do_not_depend_on_the_number_of_gpus(machine):
    machine(gpus=4)
    assert {pick_device(name).kind() for name in ('auto', 'cuda', 'cuda:0', 'cuda:3')} == {'GPU X, float32'}
    assert pick_device('auto', 'bfloat16', 'contiguous').kind() == 'GPU X, bfloat16, contiguous'
    assert pick_device('cpu').kind() == 'cpu, float32'


def test_cpu_flags_of_this_machine():
    assert all(isinstance(flag, str) for flag in module._cpu_flags())


def smallest_parts(batch_size: int, num_gpus: int) -> dict[int, int]:
    """Return {number of GPUs: smallest number of images on one}, split like DataParallel's scatter."""
    least = {}
    for count in range(1, num_gpus + 1):
        parts = [len(part) for part in torch.arange(batch_size).chunk(count)]
        least[count] = min(parts) if len(parts) == count else 0
    return least


@given(batch_size=st.integers(1, 300), num_gpus=st.integers(1, 40))
@example(batch_size=5, num_gpus=4)
@example(batch_size=8, num_gpus=5)
@example(batch_size=1, num_gpus=2)
def test_every_replica_gets_two_images(batch_size, num_gpus):
    able = [count for count, least in smallest_parts(batch_size, num_gpus).items() if least >= 2]
    assert num_replicas(batch_size, num_gpus) == max(able, default=1)


@pytest.mark.parametrize(
    ('batch_size', 'num_gpus', 'expected'),
    [(512, 8, 8), (32, 1, 1), (3, 2, 1), (4, 2, 2), (5, 4, 2), (8, 5, 4), (9, 8, 3), (1, 4, 1)],
)
def test_replicas_of_small_batches(batch_size, num_gpus, expected):
    assert num_replicas(batch_size, num_gpus) == expected


def test_generators_are_seeded_as_by_torch():
    for seed in (0, 7, 2**63 - 1):
        torch.manual_seed(seed)
        expected = torch.rand(3)
        seed_generators(seed, torch.device('cpu'))
        assert torch.equal(torch.rand(3), expected)
