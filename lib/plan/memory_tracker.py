"""Runs on tensors that have shapes but no memory, and the memory that they would have taken."""

import weakref
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


def memoryless() -> FakeTensorMode:
    """Return a context in which every new tensor is a shape on the CPU, and computing is bookkeeping.

    Unlike the meta device, it knows autocast and takes the kernels of a device.
    """
    # Without fallback: it would run a kernel that tells no shapes on real tensors.
    return FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)


def into_memoryless(module: nn.Module) -> nn.Module:
    """Return a module on the meta device, its parameters and buffers put on the CPU; within memoryless()."""
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if id(parameter) not in moved:  # one tensor may have several names
                moved[id(parameter)] = nn.Parameter(_like(parameter), requires_grad=parameter.requires_grad)
            setattr(part, name, moved[id(parameter)])
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, _like(buffer))
    return module


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of tensors, each storage once."""
    storages = WeakIdKeyDictionary({tensor.untyped_storage(): tensor.untyped_storage().nbytes() for tensor in tensors})
    return sum(storages.values())


class MemoryTracker(TorchDispatchMode):
    """Counts, within its context, the bytes of the storages that come into being and are still there.

    What a kernel takes for itself (the workspaces of convolutions) is not seen.

    Args:
        known: tensors that were there before, and do not count.

    Attributes:
        now: bytes alive.
        after: bytes alive after each operation, what was temporary in it included.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = 0
        self.after: list[int] = []
        self._seen = WeakIdKeyDictionary({tensor.untyped_storage(): True for tensor in known})

    @property
    def peak(self) -> int:
        """The most bytes that were alive at once."""
        return max(self.after, default=0)

    def series(self) -> np.ndarray:
        """Return `after` as int64."""
        return np.array(self.after, dtype=np.int64)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = None
        # What returns nothing (fused optimisers) only writes, and needs no running where nothing is written to.
        if func._schema.returns or not any(isinstance(given, FakeTensor) for given in tree_leaves(args)):
            made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.after.append(self.now)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = True
        self.now += size
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.now -= size


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device='cpu')
