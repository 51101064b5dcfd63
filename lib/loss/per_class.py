"""Numbers that a loss keeps a class: counts of images and what is made of them."""

import numpy as np
import torch


def checked_counts(class_counts: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return the training images a class as float64 (num_classes,) on the CPU.

    Raises ValueError if a count is negative, or all of them are zero.
    """
    counts = torch.as_tensor(class_counts).to(device='cpu', dtype=torch.float64)
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() == 0:
        raise ValueError('class_counts must be one count a class, none negative and not all zero')
    return counts


def fewest(counts: torch.Tensor) -> torch.Tensor:
    """Return the count of the smallest class that has images."""
    return counts[counts > 0].min()


class PerClass:
    """A number a class, kept in float64 and given out where and as exact as it is needed.

    No buffer of a module: float64 logits get float64 numbers, a device without float64 never sees any, and a
    checkpoint holds none of them.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values.double()
        self._given: torch.Tensor | None = None

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the numbers (num_classes,) on the device and in the dtype of `tensor`."""
        return self.to(tensor.device, tensor.dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Return the numbers (num_classes,) there and so; copied once, not every step."""
        given = self._given
        if given is None or given.device != device or given.dtype != dtype:
            given = self._given = self._values.to(dtype).to(device)
        return given
