"""Class index: the rows of each class and their counts."""

from functools import cached_property

import numpy as np

from lib.runtime.seeding import Purpose, generator
from lib.runtime.shared_memory import to_shared_memory

_MAX_UINT16_CLASSES, _MAX_INT32_ROWS = 2**16, 2**31


def class_starts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (num_classes + 1,) int64: the position at which each class begins once the rows are sorted by class."""
    return np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=num_classes))])


def ranks_in_classes(labels: np.ndarray) -> np.ndarray:
    """Return (n,) int64: how many earlier entries of `labels` (n,) are of the same class."""
    order = np.argsort(labels, kind='stable')
    ordered, ranks = labels[order], np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return ranks


def rows_by_class(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the rows sorted by class, ascending within a class; int32 where they fit."""
    return order_by_class(labels, num_classes).astype(_row_type(len(labels)))


def order_by_class(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (num_images,) int64 positions that sort `labels`; the sort is stable."""
    # NumPy sorts 16-bit numbers by radix: five times as fast, and enough for 50,030 classes.
    return np.argsort(labels.astype(np.uint16) if num_classes <= _MAX_UINT16_CLASSES else labels, kind='stable')


class ClassIndex:
    """Labels of a split and the rows of each class (CSR layout: one array of rows and one offset per class).

    Pickled to a worker process, it refers to shared memory.

    Args:
        labels: (num_images,) class of each row.
        num_classes: number of classes.
        rows: the selected rows, ascending; None means all. Rows keep their numbers.
        by_class: the rows sorted by class, if already computed (only without `rows`).
    """

    def __init__(
        self, labels: np.ndarray, num_classes: int, rows: np.ndarray | None = None, by_class: np.ndarray | None = None
    ) -> None:
        self.labels = labels
        self.num_classes = num_classes
        self._rows = None if rows is None else to_shared_memory(rows.astype(_row_type(len(labels))))
        if by_class is not None:
            self.by_class = by_class

    def __len__(self) -> int:
        """Return the number of selected rows."""
        return len(self.labels) if self._rows is None else len(self._rows)

    def __getstate__(self) -> dict:
        # Sorted once here rather than in every worker; workers don't need the other cached properties.
        names = ('labels', 'num_classes', '_rows', 'by_class', 'starts')
        return {name: getattr(self, name) for name in names}

    @property
    def rows(self) -> np.ndarray:
        """(len(self),) int64: the selected rows, ascending."""
        return np.arange(len(self.labels)) if self._rows is None else self._rows.astype(np.int64)

    @cached_property
    def class_counts(self) -> np.ndarray:
        """(num_classes,) int64: images per class."""
        return np.diff(self.starts)

    @cached_property
    def starts(self) -> np.ndarray:
        """(num_classes + 1,) int64: the position at which each class begins in `by_class`."""
        return class_starts(self._selected_labels(), self.num_classes)

    @cached_property
    def by_class(self) -> np.ndarray:
        """(len(self),) rows sorted by class, ascending within a class; int32 where they fit."""
        positions = rows_by_class(self._selected_labels(), self.num_classes)
        return to_shared_memory(positions if self._rows is None else np.asarray(self._rows)[positions])

    def rows_of(self, label: int) -> np.ndarray:
        """Return the rows of one class."""
        return self.by_class[self.starts[label] : self.starts[label + 1]]

    def capped(self, cap: int, seed: int) -> 'ClassIndex':
        """Return an index with at most `cap` images per class, drawn by `seed`; 0 means no cap."""
        if cap == 0 or self.class_counts.max(initial=0) <= cap:
            return self
        keys = generator(seed, Purpose.HEAD_CAP).random(len(self.labels))[self.rows]
        order = np.lexsort((keys, self.labels[self.rows]))
        position_in_class = np.arange(len(order)) - np.repeat(self.starts[:-1], self.class_counts)
        return ClassIndex(self.labels, self.num_classes, np.sort(self.rows[order[position_in_class < cap]]))

    def _selected_labels(self) -> np.ndarray:
        return np.asarray(self.labels) if self._rows is None else self.labels[self._rows]


def _row_type(num_images: int) -> type:
    return np.int32 if num_images < _MAX_INT32_ROWS else np.int64
