"""Device and precision of a model, and torch.compile with a fallback to the uncompiled module."""

import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.errors import UserError, shown, unquoted
from lib.runtime.log import LOGGER
from lib.runtime.text import small_number

# Options -> autocast dtype (None: float32), and the memory format of images, activations and convolutions' weights.
DTYPES = {'float32': None, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
MEMORY_FORMATS = {'channels_last': torch.channels_last, 'contiguous': torch.contiguous_format}


@dataclass(frozen=True)
class Device:
    """The device, the precisions and the memory format of a model.

    Attributes:
        main: device of the model and the batches.
        replicas: GPU indices for DataParallel; fewer than two: no DataParallel.
        train_dtype: autocast dtype in training: torch.bfloat16, torch.float16, or None for float32.
        eval_dtype: the same in evaluation.
        memory_format: memory format of images and weights.
    """

    main: torch.device
    replicas: tuple[int, ...]
    train_dtype: torch.dtype | None
    eval_dtype: torch.dtype | None
    memory_format: torch.memory_format = torch.channels_last

    @property
    def needs_loss_scaling(self) -> bool:
        """True if training needs loss scaling: gradients below 6e-8 are 0 in float16."""
        return self.train_dtype is torch.float16

    def describe(self, *, training: bool) -> str:
        """Return device and precision for the log, such as 'cpu, float32' or '4 GPUs (NVIDIA H200), bfloat16'."""
        hardware = self._hardware
        if self.main.type == 'cuda':
            hardware = f'{len(self.replicas)} GPUs' if len(self.replicas) > 1 else str(self.main)
            hardware = f'{hardware} ({self._hardware})'
        return f'{hardware}, {self._numbers(training)}'

    def kind(self) -> str:
        """Return hardware and precision of evaluation, without the number of GPUs: cached results depend on them."""
        return f'{self._hardware}, {self._numbers(training=False)}'

    @property
    def _hardware(self) -> str:
        return torch.cuda.get_device_name(self.main) if self.main.type == 'cuda' else self.main.type

    def _numbers(self, training: bool) -> str:
        dtype = self.train_dtype if training else self.eval_dtype
        unusual = '' if self.memory_format == torch.channels_last else ', contiguous'
        return f'{str(dtype or torch.float32).removeprefix("torch.")}{unusual}'


def pick_device(name: str = 'auto', precision: str = 'auto', memory_format: str = 'auto') -> Device:
    """Return the device `name` ('auto', 'cpu', 'mps', 'cuda', 'cuda:N') with its precisions.

    With precision 'auto', training uses bfloat16 if the hardware supports it, else float16 on GPUs with fast float16,
    else float32. Evaluation uses float32: in 8 bits of precision, logits of similar products would tie, and the
    metrics of a model would differ between machines. The memory format 'auto' is channels_last. What is faster for a
    model is measured in lib/builders/precision.py.

    Raises:
        UserError: the name is invalid, or this machine has no such device.
    """
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    main, replicas = _resolve(name)
    memory = MEMORY_FORMATS['channels_last' if memory_format == 'auto' else memory_format]
    if precision == 'auto':
        return Device(main, replicas, _fast_dtype(main, replicas), None, memory)
    dtype = DTYPES[precision]
    return Device(main, replicas, dtype, dtype, memory)


def num_replicas(batch_size: int, num_gpus: int) -> int:
    """Return the largest number of GPUs over which DataParallel can spread a batch with at least 2 images on each.

    BatchNorm cannot train on 1 image. DataParallel splits like torch.chunk: ceil(batch_size / n) images for each of the
    n replicas, and the rest, which may be empty, for the last one.
    """
    for count in range(min(num_gpus, batch_size // 2), 1, -1):
        last = batch_size - (count - 1) * math.ceil(batch_size / count)
        if last >= 2:
            return count
    return 1


def _resolve(name: str) -> tuple[torch.device, tuple[int, ...]]:
    kind, colon, number = name.partition(':')
    index = small_number(number)
    numbered = kind == 'cuda' and index is not None
    if kind not in ('cpu', 'mps', 'cuda') or (colon and not numbered):
        raise UserError(f"RUN.DEVICE is {shown(name)}, but must be 'auto', 'cpu', 'mps', 'cuda' or 'cuda:N'")
    if kind == 'mps' and not torch.backends.mps.is_available():
        raise UserError('RUN.DEVICE is mps, but this machine has no MPS device; auto selects an available device')
    if kind != 'cuda':
        return torch.device(kind), ()
    count = torch.cuda.device_count()
    if not torch.cuda.is_available() or (index is not None and index >= count):
        visible = '1 CUDA device is' if count == 1 else f'{count} CUDA devices are'
        raise UserError(f'RUN.DEVICE is {unquoted(name)}, but {visible} visible; auto selects an available device')
    replicas = tuple(range(count)) if index is None else (index,)
    return torch.device('cuda', replicas[0]), replicas


def _fast_dtype(device: torch.device, replicas: tuple[int, ...]) -> torch.dtype | None:
    """Return a dtype in which the hardware is faster than in float32, or None: emulated types are slower."""
    if device.type == 'cuda':
        capability = min(torch.cuda.get_device_capability(number) for number in replicas)
        # Tensor cores support bfloat16 from compute capability 8.0 and float16 from 7.0. Older GPUs have no tensor
        # cores, and the most common ones (6.1) are much slower in float16 than in float32.
        return torch.bfloat16 if capability >= (8, 0) else torch.float16 if capability >= (7, 0) else None
    if device.type == 'mps':
        return None
    return torch.bfloat16 if _cpu_gains_by_bfloat16() else None


def _cpu_gains_by_bfloat16() -> bool:
    flags, maker = _cpu_flags(), _cpu_maker()
    if platform.machine() in ('arm64', 'aarch64'):
        return 'bf16' in flags
    # Intel's vector units multiply bfloat16 at half the speed of float32, so only AMX is fast, which a virtual machine
    # may hide. AMD's vector units multiply bfloat16 at twice the speed of float32.
    return 'amx_bf16' in flags or ('avx512_bf16' in flags and maker != 'GenuineIntel')


def has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware, at any speed."""
    return not _cpu_flags().isdisjoint({'amx_bf16', 'avx512_bf16', 'bf16'})


def hardware_name(device: torch.device) -> str:
    """Return the model of the GPU or of the CPU."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return ' '.join(_cpu_info(('model name',)).split()) or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    """Return the CPU's feature flags; empty if unknown (all systems but Linux)."""
    return set(_cpu_info(('flags', 'features')).split())


def _cpu_maker() -> str:
    """Return the vendor such as 'GenuineIntel' or 'AuthenticAMD'; '' if unknown (all systems but Linux on x86)."""
    return _cpu_info(('vendor_id',)).strip()


def _cpu_info(names: tuple[str, ...]) -> str:
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='ascii', errors='replace')
    except OSError:
        return ''
    lines = [line for line in text.splitlines() if line.lower().startswith(names)]
    return lines[0].partition(':')[2] if lines else ''


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread within the block."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(number)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of `device` (all GPUs), as torch.manual_seed does.

    That function takes 200 times as long: for each kind of device that this machine lacks it formats the stack.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == 'cuda':
        torch.cuda.manual_seed_all(seed)
    elif device.type == 'mps':
        torch.mps.manual_seed(seed)


class Compiled(nn.Module):
    """A compiled module. If compilation fails, it logs one warning and runs uncompiled from then on.

    torch compiles at the first call, and again for other shapes: images grow during a run, and micro-batches have two
    sizes. Not for DataParallel, which creates new replicas in every step.

    Args:
        module: called with tensors, numbers and None.
        backend: backend of torch.compile.
        option: option that requests it, for the warning.
    """

    _call: Callable[..., Any]

    def __init__(self, module: nn.Module, *, backend: str | Callable = 'inductor', option: str = 'RUN.COMPILE') -> None:
        super().__init__()
        self.module, self._option = module, option
        # Not a registered submodule: torch's compiled module forwards attribute assignments to the wrapped one.
        object.__setattr__(self, '_call', torch.compile(module, backend=backend))
        self._works = True
        self._compiled_inputs: set[tuple] = set()

    def forward(self, *inputs: Any) -> Any:
        if not self._works:
            return self.module(*inputs)
        kind = tuple(value.shape if isinstance(value, torch.Tensor) else value for value in inputs)
        if kind in self._compiled_inputs:
            return self._call(*inputs)
        restore = _restore(self.module, inputs)
        try:
            outputs = self._call(*inputs)
        except Exception as error:  # compiler backends raise any type of exception
            text = '%s: the model runs uncompiled, because compilation failed: %s'
            LOGGER.warning(text, self._option, failure_reason(error))
            self._works = False
            # A part of the graph may have run and changed random states and running statistics.
            restore()
            return self.module(*inputs)
        self._compiled_inputs.add(kind)
        return outputs


def _restore(module: nn.Module, inputs: tuple) -> Callable[[], None]:
    """Return a function that restores the current buffers and random states."""
    buffers = [buffer.clone() for buffer in module.buffers()]
    devices = {tensor.device for tensor in inputs if isinstance(tensor, torch.Tensor) and tensor.is_cuda}
    state, states = torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in devices}

    def restore() -> None:
        for buffer, before in zip(module.buffers(), buffers, strict=True):
            buffer.data.copy_(before)
        torch.set_rng_state(state)
        for device, before in states.items():
            torch.cuda.set_rng_state(before, device)

    return restore


def failure_reason(error: Exception) -> str:
    """Return the type and the first line of the message, with the following lines as long as each ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ['no reason given']
    number = next((number for number, line in enumerate(lines, 1) if not line.endswith(':')), len(lines))
    return f'{type(error).__name__}: {" ".join(lines[:number])}'
