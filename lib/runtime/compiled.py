"""torch.compile where it works, the plain module where it does not."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lib.runtime.log import LOGGER


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
