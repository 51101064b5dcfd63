"""Logits of some of the classes: a rank's share of a large classifier, or the classes that a step compares with."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class ClassSubset:
    """The classes that the columns of logits are.

    Attributes:
        classes: a range, or, where they are drawn, sorted int64 (num_columns,) without repetition; at least one.
        num_classes: how many there are in all.
        gather: a tensor -> (num_parts, *its shape), the same tensor of every part, this one's own included; a
            collective, without gradient. None: there is this part alone.
    """

    classes: range | torch.Tensor
    num_classes: int
    gather: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        if len(self.classes) == 0:
            raise ValueError('a part of the classes needs at least one of them')

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def are_drawn(self) -> bool:
        """Whether the classes of all parts together may be fewer than there are."""
        return isinstance(self.classes, torch.Tensor)

    def of(self, per_class: torch.Tensor) -> torch.Tensor:
        """Return the rows (num_columns, ...) of these classes out of those of all, (num_classes, ...)."""
        if isinstance(self.classes, range):
            return per_class[self.classes.start : self.classes.stop]
        return per_class[self.classes]

    def numbers(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the classes at these columns, of the same shape."""
        if isinstance(self.classes, range):
            return positions + self.classes.start
        return self.classes[positions]

    def find(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each label's column (any, for a class that is elsewhere) and whether its class is here."""
        last = len(self) - 1
        if isinstance(self.classes, range):
            positions = labels - self.classes.start
            return positions.clamp(0, last), (positions >= 0) & (positions <= last)
        positions = torch.searchsorted(self.classes, labels.contiguous()).clamp_(max=last)
        return positions, self.classes[positions] == labels

    def join(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return (num_parts, *shape): the same tensor of every part."""
        return tensor[None] if self.gather is None else self.gather(tensor)


@dataclass(frozen=True)
class ShardedLogits:
    """Logits (batch, num_columns) of some classes, to be given to a loss in place of the logits of all.

    Every part has the same images, in the same order, and computes the same losses. The gradient that a part's values
    get is that of the whole loss, so what is behind them needs no scaling; what all parts share (features) gets the
    sum over the parts. Where classes are drawn the softmax is over these alone (Partial FC: An et al., CVPR 2022); the
    classes of all labels must be among those of the parts together.

    Attributes:
        values: a leaf, or what autograd made.
        columns: the classes that they are of.
        overwrite: the first to look at the values may leave what it saves for its gradient, and then the gradient, in
            their memory. For a caller that needs them, and the graph, but once.
    """

    values: torch.Tensor
    columns: ClassSubset
    overwrite: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> torch.Size:
        """That of the logits of all classes."""
        return torch.Size((len(self.values), self.columns.num_classes))

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype


Logits = torch.Tensor | ShardedLogits


def without_overwrite(logits: Logits) -> Logits:
    """Return logits that several may look at."""
    return replace(logits, overwrite=False) if isinstance(logits, ShardedLogits) else logits


def gradient_buffer(logits: Logits) -> torch.Tensor | None:
    """Return where to leave (batch, num_columns) numbers for the gradient, and then the gradient; None: nowhere.

    That is the memory of the logits themselves, if they are as exact as the numbers and may be overwritten.
    """
    may = isinstance(logits, ShardedLogits) and logits.overwrite and logits.dtype == loss_dtype(logits)
    return logits.values.detach() if may else None


def split(logits: Logits) -> tuple[torch.Tensor, ClassSubset | None]:
    """Return the values, and which classes they are of; None: of all."""
    return (logits.values, logits.columns) if isinstance(logits, ShardedLogits) else (logits, None)


def select_classes(per_class: torch.Tensor, logits: Logits) -> torch.Tensor:
    """Return the numbers (num_columns,) of the classes that the logits are of, out of those of all classes."""
    return logits.columns.of(per_class) if isinstance(logits, ShardedLogits) else per_class


def loss_dtype(logits: Logits) -> torch.dtype:
    """Return what losses are computed in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


class LabelIndex:
    """Where labels (batch, k) are among the columns of logits: reading and writing there, images' labels alone."""

    def __init__(self, labels: torch.Tensor, columns: ClassSubset | None) -> None:
        self._positions, self._here, self._covered = labels, None, None
        if columns is None:
            return
        self._positions, self._here = columns.find(labels)
        self._covered = self._here
        if labels.shape[1] > 1:
            # A class that is elsewhere stands at any column, maybe at that of another label: what is written to one
            # column must be one number, whichever of its writers comes last.
            same = self._positions[:, :, None] == self._positions[:, None, :]  # (batch, k, k)
            self._covered = (same & self._here[:, None, :]).any(dim=2)

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """Return the labels' values (batch, k); 0 where the class is elsewhere."""
        return self.zero_elsewhere(values.gather(1, self._positions))

    def zero_elsewhere(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return numbers (batch, k), with 0 where the class is elsewhere."""
        return numbers if self._here is None else numbers.masked_fill(~self._here, 0)

    def put(self, block: torch.Tensor, rows: slice, number: float) -> None:
        """Write a number to the labels' columns of some rows."""
        positions = self._positions[rows]
        if self._here is None:
            block.scatter_(1, positions, number)
        else:
            block.scatter_(1, positions, block.gather(1, positions).masked_fill_(self._covered[rows], number))

    def add(self, block: torch.Tensor, rows: slice, numbers: torch.Tensor) -> None:
        """Add numbers (rows, k) to the labels' columns of some rows."""
        if self._here is not None:
            numbers = numbers.masked_fill(~self._here[rows], 0)
        block.scatter_add_(1, self._positions[rows], numbers)
