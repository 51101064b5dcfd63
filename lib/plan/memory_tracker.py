"""Run code on tensors that have shapes but no memory, and count the memory that they would take."""

import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


def memoryless() -> FakeTensorMode:
    """Return a context in which every new tensor is a fake CPU tensor: operations compute shapes only.

    Unlike the meta device, it supports autocast and dispatches to the kernels of a device.
    """
    # Without fallback, which would run kernels without a shape function on real tensors.
    return FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)


def into_memoryless(module: nn.Module) -> nn.Module:
    """Replace parameters and buffers of a module on the meta device by fake CPU tensors, within memoryless()."""
    moved: dict[int, nn.Parameter] = {}
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if id(parameter) not in moved:  # a tied parameter has several names
                moved[id(parameter)] = nn.Parameter(_like(parameter), requires_grad=parameter.requires_grad)
            setattr(child, name, moved[id(parameter)])
        for name, buffer in child.named_buffers(recurse=False):
            setattr(child, name, _like(buffer))
    return module


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of tensors, counting each storage once."""
    storages = WeakIdKeyDictionary({tensor.untyped_storage(): tensor.untyped_storage().nbytes() for tensor in tensors})
    return sum(storages.values())


class MemoryTracker(TorchDispatchMode):
    """Count the bytes of all storages that are created within the context and still alive.

    Workspaces inside kernels (convolutions) are not counted.

    Args:
        existing: tensors that are not counted.

    Attributes:
        current: bytes alive now.
        history: bytes alive after each operation, its temporary results included.
    """

    def __init__(self, existing: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.current = 0
        self.history: list[int] = []
        self._counted = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in existing})

    @property
    def peak(self) -> int:
        """Return the maximum of `history`, bytes."""
        return max(self.history, default=0)

    def series(self) -> np.ndarray:
        """Return `history` as int64 (operations,)."""
        return np.array(self.history, dtype=np.int64)

    def restart(self) -> None:
        """Clear `history`, so that `peak` is that of later operations."""
        self.history.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = None
        # Operations without a result (fused optimizers) only write to their arguments: skipped for fake tensors.
        if func._schema.returns or not any(isinstance(argument, FakeTensor) for argument in tree_leaves(args)):
            result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.history.append(self.current)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._counted:
            return
        size = storage.nbytes()
        self._counted[storage] = True
        self.current += size
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.current -= size


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device='cpu')
