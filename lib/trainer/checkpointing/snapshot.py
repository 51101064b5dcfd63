"""A checkpoint of this very moment, which stays what it is while training goes on."""

from dataclasses import replace
from typing import Any

import torch

from lib.trainer.checkpointing.state import Checkpoint, versions


def snapshot(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy in the CPU's memory; every tensor is copied once, whatever shares it shares the copy."""
    copier = _Copier()
    names = ('state_dict', 'training_state', 'optimizer', 'scaler')
    copied = {name: copier(getattr(checkpoint, name)) for name in names}
    if checkpoint.head is not None:
        copied['head'] = replace(checkpoint.head, rows=copier(checkpoint.head.rows))
    copier.finish()
    return replace(
        checkpoint, **copied, place=replace(checkpoint.place), rng=torch.get_rng_state(), versions=versions()
    )


class _Copier:
    """Copies trees of dicts, lists and tensors."""

    def __init__(self) -> None:
        self._copies: dict[tuple, torch.Tensor] = {}
        self._streams: set[torch.cuda.Stream] = set()

    def __call__(self, tree: Any) -> Any:
        if isinstance(tree, torch.Tensor):
            return self._tensor(tree)
        if isinstance(tree, dict):
            return {name: self(value) for name, value in tree.items()}
        if isinstance(tree, list | tuple):
            return type(tree)(self(value) for value in tree)
        return tree

    def finish(self) -> None:
        """Wait for copies from GPUs."""
        for stream in self._streams:
            stream.synchronize()

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()
        place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype)
        key = (*place, tensor.shape, tensor.stride())
        if key not in self._copies:
            self._copies[key] = self._from_gpu(tensor) if tensor.device.type == 'cuda' else _from_cpu(tensor)
        return self._copies[key]

    def _from_gpu(self, tensor: torch.Tensor) -> torch.Tensor:
        try:
            copy = torch.empty_like(tensor, device='cpu', pin_memory=True)
        except RuntimeError:  # so much memory cannot be pinned; any other will do, more slowly
            return tensor.cpu()
        self._streams.add(torch.cuda.current_stream(tensor.device))
        return copy.copy_(tensor, non_blocking=True)


def _from_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone() if tensor.device.type == 'cpu' else tensor.cpu()
