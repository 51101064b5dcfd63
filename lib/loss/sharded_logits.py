"""Logits of a subset of the classes: one rank's shard of a large classifier, or the classes sampled for a step."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class ClassSubset:
    """The classes that the columns of sharded logits stand for.

    Attributes:
        classes: a range, or sorted int64 (num_columns,) without duplicates where they are sampled; at least one.
        num_classes: the total number of classes, over all shards.
        gather: a collective without gradient, tensor -> (num_shards, *its shape): the tensor of every shard, this one
            included. None: there is one shard.
    """

    classes: range | torch.Tensor
    num_classes: int
    gather: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        if len(self.classes) == 0:
            raise ValueError('a subset of the classes needs at least one class')

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def is_sampled(self) -> bool:
        """Return whether the shards together may hold fewer than num_classes classes."""
        return isinstance(self.classes, torch.Tensor)

    def select(self, constants: torch.Tensor) -> torch.Tensor:
        """Return the rows (num_columns, ...) of these classes out of those of all classes, (num_classes, ...)."""
        if isinstance(self.classes, range):
            return constants[self.classes.start : self.classes.stop]
        return constants[self.classes]

    def to_classes(self, columns: torch.Tensor) -> torch.Tensor:
        """Return the classes that int64 `columns` of any shape stand for."""
        if isinstance(self.classes, range):
            return columns + self.classes.start
        return self.classes[columns]

    def to_columns(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the column of each label and a bool mask of labels in this subset; other labels get any column."""
        last = len(self) - 1
        if isinstance(self.classes, range):
            columns = labels - self.classes.start
            return columns.clamp(0, last), (columns >= 0) & (columns <= last)
        columns = torch.searchsorted(self.classes, labels.contiguous()).clamp_(max=last)
        return columns, self.classes[columns] == labels

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return (num_shards, *shape): the tensor of every shard."""
        return tensor[None] if self.gather is None else self.gather(tensor)


@dataclass(frozen=True)
class ShardedLogits:
    """Logits (batch, num_columns) of a subset of the classes; losses accept them in place of the logits of all classes.

    Every shard has the same images in the same order and computes the same losses. The gradient of `values` is that of
    the whole loss, so what precedes them needs no scaling; tensors that all shards use (features) need the sum of the
    shards' gradients. With sampled classes the softmax is over these only (Partial FC: An et al., CVPR 2022); the
    classes of all labels must be among those of the shards together.

    Attributes:
        values: (batch, num_columns), a leaf or the result of autograd operations.
        subset: the classes of the columns; None: all.
        overwrite: allow the first loss to store what it saves for backward, and then the gradient, in the memory of
            `values`; for callers that use the values and the graph once.
    """

    values: torch.Tensor
    subset: ClassSubset | None
    overwrite: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> torch.Size:
        """Return the shape of the logits of all classes, (batch, num_classes)."""
        num_classes = self.values.shape[1] if self.subset is None else self.subset.num_classes
        return torch.Size((len(self.values), num_classes))

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype


Logits = torch.Tensor | ShardedLogits


def without_overwrite(logits: Logits) -> Logits:
    """Return logits that several losses can read."""
    return replace(logits, overwrite=False) if isinstance(logits, ShardedLogits) else logits


def gradient_buffer(logits: Logits) -> torch.Tensor | None:
    """Return memory (batch, num_columns) for what backward needs and then for the gradient; None: allocate it.

    The buffer is the memory of the logits themselves, if they may be overwritten and have the dtype of the loss.
    """
    if isinstance(logits, ShardedLogits) and logits.overwrite and logits.dtype == loss_dtype(logits):
        return logits.values.detach()
    return None


def values_and_subset(logits: Logits) -> tuple[torch.Tensor, ClassSubset | None]:
    """Return the values (batch, num_columns) and the classes of their columns; None: all classes."""
    return (logits.values, logits.subset) if isinstance(logits, ShardedLogits) else (logits, None)


def select_classes(constants: torch.Tensor, logits: Logits) -> torch.Tensor:
    """Return the entries (num_columns,) for the columns of the logits out of those of all classes, (num_classes,)."""
    _, subset = values_and_subset(logits)
    return constants if subset is None else subset.select(constants)


def loss_dtype(logits: Logits) -> torch.dtype:
    """Return the dtype in which losses are computed: float64 for float64 logits, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


class LabelIndex:
    """Gather from and scatter to the columns of the labels (batch, k), skipping labels of other shards."""

    def __init__(self, labels: torch.Tensor, subset: ClassSubset | None) -> None:
        self._columns = labels
        # Bool (batch, k): the label is in this subset; its column is that of a label in this subset.
        self._is_local: torch.Tensor | None = None
        self._is_label_column: torch.Tensor | None = None
        if subset is None:
            return
        self._columns, self._is_local = subset.to_columns(labels)
        self._is_label_column = self._is_local
        if labels.shape[1] > 1:
            # A label of another shard has an arbitrary column, maybe that of another label: all writes to one column
            # must have the same value, because their order is undefined.
            same = self._columns[:, :, None] == self._columns[:, None, :]  # (batch, k, k)
            self._is_label_column = (same & self._is_local[:, None, :]).any(dim=2)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the labels' values (batch, k); 0 for labels of other shards."""
        return self.mask_remote(values.gather(1, self._columns))

    def mask_remote(self, label_values: torch.Tensor) -> torch.Tensor:
        """Return `label_values` (batch, k) with 0 for labels of other shards."""
        return label_values if self._is_local is None else label_values.masked_fill(~self._is_local, 0)

    def fill_(self, block: torch.Tensor, rows: slice, value: float) -> None:
        """Set the labels' columns of some rows to a value, in place."""
        columns = self._columns[rows]
        if self._is_label_column is None:
            block.scatter_(1, columns, value)
        else:
            block.scatter_(1, columns, block.gather(1, columns).masked_fill_(self._is_label_column[rows], value))

    def add_(self, block: torch.Tensor, rows: slice, label_values: torch.Tensor) -> None:
        """Add `label_values` (rows, k) to the labels' columns of some rows, in place."""
        if self._is_local is not None:
            label_values = label_values.masked_fill(~self._is_local[rows], 0)
        block.scatter_add_(1, self._columns[rows], label_values)
