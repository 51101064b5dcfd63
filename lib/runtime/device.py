"""Which device, which precision: picked by the hardware, or forced.

torch.compile where it works, the plain module where it does not.
"""

import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.errors import UserError
from lib.runtime.log import LOGGER

FORCED_DTYPES = {'float32': None, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


@dataclass(frozen=True)
class Device:
    """Where a model runs.

    Attributes:
        main: the device that holds the model and the batches.
        replicas: GPU numbers for DataParallel; fewer than two means none.
        train_dtype: of autocast in training: torch.bfloat16, torch.float16, or None for float32 throughout.
        eval_dtype: the same in evaluation.
    """

    main: torch.device
    replicas: tuple[int, ...]
    train_dtype: torch.dtype | None
    eval_dtype: torch.dtype | None

    @property
    def scales(self) -> bool:
        """Whether training has to scale the loss: gradients below 6e-8 are 0 in float16."""
        return self.train_dtype is torch.float16

    def describe(self, *, training: bool) -> str:
        """Return one phrase for the log, such as 'cpu, float32' or '4 GPUs (NVIDIA H200), bfloat16'."""
        if self.main.type == 'cuda':
            name = torch.cuda.get_device_name(self.main)
            where = f'{len(self.replicas)} GPUs ({name})' if len(self.replicas) > 1 else f'{self.main} ({name})'
        else:
            where = self.main.type
        dtype = self.train_dtype if training else self.eval_dtype
        return f'{where}, {str(dtype or torch.float32).removeprefix("torch.")}'


def pick_device(name: str = 'auto', precision: str = 'auto') -> Device:
    """Return the device called `name` ('auto', 'cpu', 'mps', 'cuda', 'cuda:N') with a precision that suits it.

    'auto' as precision is bfloat16 where the hardware computes in it, else float16 on GPUs that are fast in it, but for
    training alone: rounded to eight bits, near-identical products would tie, and a model would score differently from
    machine to machine.

    Raises:
        UserError: the device is not there, or its name is none.
    """
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    main, replicas = _resolve(name)
    if precision == 'auto':
        return Device(main, replicas, train_dtype=_fast_dtype(main, replicas), eval_dtype=None)
    dtype = FORCED_DTYPES[precision]
    return Device(main, replicas, train_dtype=dtype, eval_dtype=dtype)


def num_replicas(batch_size: int, num_gpus: int) -> int:
    """Return over how many of the GPUs DataParallel can spread a batch: every replica gets at least two images.

    BatchNorm cannot train on one. DataParallel cuts as torch.chunk does: ceil(batch_size / n) images for each of the
    n replicas, and what is left for the last one, which may be nothing.
    """
    for count in range(min(num_gpus, batch_size // 2), 1, -1):
        last = batch_size - (count - 1) * math.ceil(batch_size / count)
        if last >= 2:
            return count
    return 1


def _resolve(name: str) -> tuple[torch.device, tuple[int, ...]]:
    kind, colon, number = name.partition(':')
    numbered = kind == 'cuda' and number.isascii() and number.isdigit()
    if kind not in ('cpu', 'mps', 'cuda') or (colon and not numbered):
        raise UserError(f"RUN.DEVICE is {name!r}, but must be 'auto', 'cpu', 'mps', 'cuda' or 'cuda:N'")
    if kind == 'mps' and not torch.backends.mps.is_available():
        raise UserError('RUN.DEVICE is mps, but this machine has none; auto picks what there is')
    if kind != 'cuda':
        return torch.device(kind), ()
    count = torch.cuda.device_count()
    if not torch.cuda.is_available() or (number and int(number) >= count):
        raise UserError(f'RUN.DEVICE is {name}, but {count} CUDA devices are visible; auto picks what there is')
    replicas = (int(number),) if number else tuple(range(count))
    return torch.device('cuda', replicas[0]), replicas


def _fast_dtype(device: torch.device, replicas: tuple[int, ...]) -> torch.dtype | None:
    """Return what the hardware computes in faster than in float32; where it only emulates a type, that is slower."""
    if device.type == 'cuda':
        capability = min(torch.cuda.get_device_capability(number) for number in replicas)
        # Tensor cores know bfloat16 from 8.0 on, and float16 from 7.0 on. Older GPUs have none, and the most common of
        # them (6.1) compute in float16 far more slowly than in float32, so there it has to be asked for.
        return torch.bfloat16 if capability >= (8, 0) else torch.float16 if capability >= (7, 0) else None
    if device.type == 'mps':
        return None
    return torch.bfloat16 if _cpu_gains_by_bfloat16() else None


def _cpu_gains_by_bfloat16() -> bool:
    flags, maker = _cpu_flags(), _cpu_maker()
    if platform.machine() in ('arm64', 'aarch64'):
        return 'bf16' in flags
    # Intel's vector units multiply bfloat16 at half the speed of float32 (a virtual machine may hide the AMX tiles,
    # which are what is fast there); AMD's at twice the speed.
    return 'amx_bf16' in flags or ('avx512_bf16' in flags and maker != 'GenuineIntel')


def _cpu_flags() -> set[str]:
    """Return the CPU's feature names where the system tells them (Linux), else none."""
    return set(_cpu_info(('flags', 'features')).split())


def _cpu_maker() -> str:
    """Return 'GenuineIntel', 'AuthenticAMD' or the like where the system tells it (Linux on x86), else ''."""
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
    """Let torch compute in the calling thread alone within the block."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(number)


class Compiled(nn.Module):
    """A module that is compiled. Where that fails, a note says so once, and from then on the module runs as it is.

    torch compiles at the first call, and maybe at later ones of other shapes: images grow over a run, and the parts of
    a batch have two sizes. It is not for DataParallel, whose replicas are new ones in every step.

    Args:
        module: is called with tensors, numbers and None.
        backend: of torch.compile.
    """

    def __init__(self, module: nn.Module, *, backend: str | Callable = 'inductor') -> None:
        super().__init__()
        self.module = module
        # Not registered: an attribute that is set on this module of torch's is set on the one within.
        object.__setattr__(self, '_call', torch.compile(module, backend=backend))
        self._works, self._seen = True, set()

    def forward(self, *inputs: Any) -> Any:
        if not self._works:
            return self.module(*inputs)
        kind = tuple(value.shape if isinstance(value, torch.Tensor) else value for value in inputs)
        if kind in self._seen:
            return self._call(*inputs)
        restore = _restore(self.module, inputs)
        try:
            outputs = self._call(*inputs)
        except Exception as error:  # the compilers behind it fail in every way there is
            LOGGER.warning('RUN.COMPILE: the model runs uncompiled, since compiling failed: %s', _reason(error))
            self._works = False
            # A part of it may have run: neither dropout nor running statistics have seen this batch yet.
            restore()
            return self.module(*inputs)
        self._seen.add(kind)
        return outputs


def _restore(module: nn.Module, inputs: tuple) -> Callable[[], None]:
    """Return what makes buffers and random numbers what they are now."""
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


def _reason(error: Exception) -> str:
    """Return the first line of what it says, and as many more as each goes on after a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ['no reason given']
    number = next((number for number, line in enumerate(lines, 1) if not line.endswith(':')), len(lines))
    return f'{type(error).__name__}: {" ".join(lines[:number])}'
