"""What the logits of a batch go through before they are compared: scales, shifts and weights a class.

Numbers that a loss keeps a class: counts of images and what is made of them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lib.loss.sharded_logits import LabelIndex, Logits, loss_dtype, select_classes, split


def checked_counts(class_counts: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return the training images a class as float64 (num_classes,) on the CPU.

    Raises ValueError if a count is negative, or all of them are zero.
    """
    counts = torch.as_tensor(class_counts).to(device='cpu', dtype=torch.float64)
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() == 0:
        raise ValueError('class_counts must be one count a class, none negative and not all zero')
    return counts


def smallest_count(counts: torch.Tensor) -> torch.Tensor:
    """Return the count of the smallest class that has images."""
    return counts[counts > 0].min()


class ClassConstants:
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


@dataclass(frozen=True)
class LogitBlock:
    """The logits of some images of a batch, for a loss that weighs the classes by image.

    Attributes:
        values: (rows, num_columns), scaled and shifted, float32 or float64; to be changed in place.
        labels: (rows, k) int64.
        rows: which images.
        batch: what the whole batch goes through.
    """

    values: torch.Tensor
    labels: torch.Tensor
    rows: slice
    batch: 'LogitTransform'

    def own(self) -> torch.Tensor:
        """Return the labels' logits (rows, k), scaled and shifted. Parts of the classes exchange them once a batch."""
        return self.batch.joined_own[self.rows]


# Adds the logarithms of weights to the values of a block, in place; what it does to the labels' does not matter. They
# are constants to the gradient; -inf takes a class out of the softmax.
AddLogWeights = Callable[[LogitBlock], None]


class LogitTransform:
    """z -> scale z + shift of every class, and + ln weight of those that are not the label.

    Args:
        logits: of all classes or of some.
        labels: (batch, k) int64.
        scale, shift: a class, or None.
        weigh: adds the weights, or None.

    Attributes:
        columns: which classes the logits are of; None: all.
        places: where the labels are among them.
        scale: (num_columns,) or None.
        own: the labels' logits (batch, k), scaled and shifted; 0 where the class is elsewhere.
    """

    def __init__(
        self,
        logits: Logits,
        labels: torch.Tensor,
        scale: ClassConstants | None = None,
        shift: ClassConstants | None = None,
        weigh: AddLogWeights | None = None,
    ) -> None:
        values, self.columns = split(logits)
        self.places = LabelIndex(labels, self.columns)
        dtype = loss_dtype(logits)
        own = self.places.take(values.detach()).to(dtype)
        self.scale = self._shift = None
        if scale is not None:
            scales = scale.to(logits.device, dtype)
            self.scale = select_classes(scales, logits)
            own = own * scales[labels]
        if shift is not None:
            shifts = shift.to(logits.device, dtype)
            self._shift = select_classes(shifts, logits)
            own = self.places.zero_elsewhere(own + shifts[labels])
        self.own = own
        self._labels, self._weigh = labels, weigh

    def scale_and_shift(self, block: torch.Tensor) -> None:
        """Change the logits (rows, num_columns) of some images in place."""
        if self.scale is not None:
            block.mul_(self.scale)
        if self._shift is not None:
            block.add_(self._shift)

    def weigh(self, block: torch.Tensor, rows: slice) -> None:
        """Add the logarithms of weights in place."""
        if self._weigh is not None:
            self._weigh(LogitBlock(block, self._labels[rows], rows, self))

    @functools.cached_property
    def joined_own(self) -> torch.Tensor:
        """`own` over all parts of the classes."""
        return self.own if self.columns is None else self.columns.join(self.own).sum(dim=0)
