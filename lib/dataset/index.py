"""Which rows belong to which class, and how many there are."""

from functools import cached_property

import numpy as np

from lib.runtime.seeding import Purpose, generator


class ProductIndex:
    """Labels of a split, with the rows of each class side by side (CSR layout: one array and one offset a class).

    Args:
        labels: (num_images,) class of each row.
        num_classes: number of classes.
        kept: rows that take part, in rising order; None means all. Rows keep their numbers.
    """

    def __init__(self, labels: np.ndarray, num_classes: int, kept: np.ndarray | None = None) -> None:
        self.labels = labels
        self.num_classes = num_classes
        self.rows = np.arange(len(labels)) if kept is None else kept

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def class_counts(self) -> np.ndarray:
        """(num_classes,) int64: images a class."""
        return np.bincount(self.labels[self.rows], minlength=self.num_classes)

    @cached_property
    def starts(self) -> np.ndarray:
        """(num_classes + 1,) int64: where each class begins in `by_class`."""
        return np.concatenate([[0], np.cumsum(self.class_counts)])

    @cached_property
    def by_class(self) -> np.ndarray:
        """(len(self),) rows, those of one class side by side, in rising order."""
        return self.rows[np.argsort(self.labels[self.rows], kind='stable')]

    def rows_of(self, label: int) -> np.ndarray:
        """Return the rows of one class."""
        return self.by_class[self.starts[label] : self.starts[label + 1]]

    def capped(self, cap: int, seed: int) -> 'ProductIndex':
        """Return an index with at most `cap` images a class, chosen by `seed`; 0 means no cap."""
        if cap == 0 or self.class_counts.max(initial=0) <= cap:
            return self
        keys = generator(seed, Purpose.HEAD_CAP).random(len(self.labels))[self.rows]
        order = np.lexsort((keys, self.labels[self.rows]))
        place_in_class = np.arange(len(order)) - np.repeat(self.starts[:-1], self.class_counts)
        return ProductIndex(self.labels, self.num_classes, np.sort(self.rows[order[place_in_class < cap]]))
