"""torch.compile where it works, the plain module where it does not."""

from typing import Any

import torch
from torch import nn

from lib.runtime.log import LOGGER


class Compiled(nn.Module):
    """A module that is compiled at its first call. Where that fails, a note says so, and it runs as it is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._call = torch.compile(module)
        self._works: bool | None = None

    def forward(self, *inputs: Any) -> Any:
        if self._works is None:
            self._works = self._try(inputs)
        return self._call(*inputs) if self._works else self.module(*inputs)

    def _try(self, inputs: tuple) -> bool:
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        devices = [tensor.device for tensor in inputs if isinstance(tensor, torch.Tensor) and tensor.is_cuda]
        try:
            # The call is a trial: neither dropout nor running statistics have seen this batch yet.
            with torch.random.fork_rng(devices[:1]):
                self._call(*inputs)
        except Exception as error:  # the compilers behind it fail in every way there is
            LOGGER.warning('RUN.COMPILE: the model runs uncompiled, since compiling failed: %s', _first_line(error))
            return False
        finally:
            for buffer, before in zip(self.module.buffers(), buffers, strict=True):
                buffer.data.copy_(before)
        return True


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else "no reason given"}'
