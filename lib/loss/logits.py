"""Transforms of a batch's logits before the softmax: per-class scales and shifts, and per-image class weights.

Also the per-class constants that losses derive from the class counts.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lib.loss.sharded_logits import LabelIndex, Logits, loss_dtype, select_classes, values_and_subset


def checked_counts(class_counts: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return the training images per class as float64 (num_classes,) on the CPU.

    Raises:
        ValueError: a count is negative, or all are zero.
    """
    counts = torch.as_tensor(class_counts).to(device='cpu', dtype=torch.float64)
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() == 0:
        raise ValueError('class_counts must be one count per class, none negative and not all zero')
    return counts


def smallest_count(counts: torch.Tensor) -> torch.Tensor:
    """Return the count of the smallest class that has images, a scalar."""
    return counts[counts > 0].min()


class ClassConstants:
    """One constant per class, stored in float64 and converted on use to the device and dtype of the logits.

    Not a buffer of a module: float64 logits get float64 constants, a device without float64 never gets any, and
    checkpoints do not store them.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values.double()
        self._converted: torch.Tensor | None = None

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the constants (num_classes,) on the device and in the dtype of `tensor`."""
        return self.to(tensor.device, tensor.dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Return the constants (num_classes,) on a device in a dtype; converted once, not in every step."""
        converted = self._converted
        if converted is None or converted.device != device or converted.dtype != dtype:
            converted = self._converted = self._values.to(dtype).to(device)
        return converted


@dataclass(frozen=True)
class LogitBlock:
    """The logits of some images of a batch, for losses whose class weights depend on the image.

    Attributes:
        values: (rows, num_columns), scaled and shifted, float32 or float64; modified in place.
        labels: (rows, k) int64.
        rows: which images of the batch.
        transform: the transform of the whole batch.
    """

    values: torch.Tensor
    labels: torch.Tensor
    rows: slice
    transform: 'LogitTransform'

    def target_logits(self) -> torch.Tensor:
        """Return the labels' logits (rows, k), scaled and shifted. Shards exchange them once per batch."""
        return self.transform.gathered_target[self.rows]


# Adds the logarithms of class weights to the values of a block, in place; entries of the labels are ignored. The
# weights are constants to the gradient; -inf takes a class out of the softmax.
AddLogWeights = Callable[[LogitBlock], None]


class LogitTransform:
    """z -> scale z + shift for every class, and + ln weight for every class but the label.

    Args:
        logits: logits of all classes or of a subset.
        labels: (batch, k) int64.
        scale, shift: per class, or None.
        add_log_weights: adds ln weight to a block, or None.

    Attributes:
        subset: the classes of the columns; None: all.
        label_index: the columns of the labels.
        scale: (num_columns,) or None.
        target: the labels' logits (batch, k), scaled and shifted; 0 for labels of other shards.
    """

    def __init__(
        self,
        logits: Logits,
        labels: torch.Tensor,
        scale: ClassConstants | None = None,
        shift: ClassConstants | None = None,
        add_log_weights: AddLogWeights | None = None,
    ) -> None:
        values, self.subset = values_and_subset(logits)
        self.label_index = LabelIndex(labels, self.subset)
        dtype = loss_dtype(logits)
        target = self.label_index.gather(values.detach()).to(dtype)
        self.scale: torch.Tensor | None = None
        self._shift: torch.Tensor | None = None
        if scale is not None:
            scales = scale.to(logits.device, dtype)
            self.scale = select_classes(scales, logits)
            target = target * scales[labels]
        if shift is not None:
            shifts = shift.to(logits.device, dtype)
            self._shift = select_classes(shifts, logits)
            target = self.label_index.mask_remote(target + shifts[labels])
        self.target = target
        self._labels, self._add_log_weights = labels, add_log_weights

    def scale_and_shift_(self, block: torch.Tensor) -> None:
        """Scale and shift the logits (rows, num_columns) of some images in place."""
        if self.scale is not None:
            block.mul_(self.scale)
        if self._shift is not None:
            block.add_(self._shift)

    def add_log_weights_(self, block: torch.Tensor, rows: slice) -> None:
        """Add the logarithms of the class weights to the logits (rows, num_columns) of some images in place."""
        if self._add_log_weights is not None:
            self._add_log_weights(LogitBlock(block, self._labels[rows], rows, self))

    @functools.cached_property
    def gathered_target(self) -> torch.Tensor:
        """Return `target` (batch, k) summed over all shards, so that every label has its logit."""
        return self.target if self.subset is None else self.subset.all_gather(self.target).sum(dim=0)
