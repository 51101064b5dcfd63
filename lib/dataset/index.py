"""Which rows belong to which class, and how many there are.

quarantine.json: images that take no part in training, though their files and annotations stay as they are.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.errors import UserError
from lib.runtime.seeding import Purpose, generator
from lib.runtime.shared_memory import to_shared_memory

_SHORT, _NARROW = 2**16, 2**31


def class_starts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (num_classes + 1,) int64: where each class begins once the rows are sorted by class."""
    return np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=num_classes))])


def rows_by_class(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the rows sorted by class, in rising order within one; int32 where they fit."""
    return order_by_class(labels, num_classes).astype(_row_type(len(labels)))


def order_by_class(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (num_images,) int64 places that sort `labels`, equal ones as they stand."""
    # NumPy sorts 16-bit numbers by radix: five times as fast, and enough for 50,030 classes.
    return np.argsort(labels.astype(np.uint16) if num_classes <= _SHORT else labels, kind='stable')


class ClassIndex:
    """Labels of a split, with the rows of each class side by side (CSR layout: one array and one offset a class).

    To a worker process it travels as places in shared memory.

    Args:
        labels: (num_images,) class of each row.
        num_classes: number of classes.
        kept: rows that take part, in rising order; None means all. Rows keep their numbers.
        by_class: the rows sorted by class, where somebody knows them already (only without `kept`).
    """

    def __init__(
        self, labels: np.ndarray, num_classes: int, kept: np.ndarray | None = None, by_class: np.ndarray | None = None
    ) -> None:
        self.labels = labels
        self.num_classes = num_classes
        self._kept = None if kept is None else to_shared_memory(kept.astype(_row_type(len(labels))))
        if by_class is not None:
            self.by_class = by_class

    def __len__(self) -> int:
        return len(self.labels) if self._kept is None else len(self._kept)

    def __getstate__(self) -> dict:
        # Sorted once here rather than in every worker; what else was worked out, they can do without.
        names = ('labels', 'num_classes', '_kept', 'by_class', 'starts')
        return {name: getattr(self, name) for name in names}

    @property
    def rows(self) -> np.ndarray:
        """(len(self),) int64: the rows that take part, in rising order."""
        return np.arange(len(self.labels)) if self._kept is None else self._kept.astype(np.int64)

    @cached_property
    def class_counts(self) -> np.ndarray:
        """(num_classes,) int64: images a class."""
        return np.diff(self.starts)

    @cached_property
    def starts(self) -> np.ndarray:
        """(num_classes + 1,) int64: where each class begins in `by_class`."""
        return class_starts(self._labels_taking_part(), self.num_classes)

    @cached_property
    def by_class(self) -> np.ndarray:
        """(len(self),) rows, those of one class side by side, in rising order; int32 where they fit."""
        places = rows_by_class(self._labels_taking_part(), self.num_classes)
        return to_shared_memory(places if self._kept is None else np.asarray(self._kept)[places])

    def rows_of(self, label: int) -> np.ndarray:
        """Return the rows of one class."""
        return self.by_class[self.starts[label] : self.starts[label + 1]]

    def capped(self, cap: int, seed: int) -> 'ClassIndex':
        """Return an index with at most `cap` images a class, chosen by `seed`; 0 means no cap."""
        if cap == 0 or self.class_counts.max(initial=0) <= cap:
            return self
        keys = generator(seed, Purpose.HEAD_CAP).random(len(self.labels))[self.rows]
        order = np.lexsort((keys, self.labels[self.rows]))
        place_in_class = np.arange(len(order)) - np.repeat(self.starts[:-1], self.class_counts)
        return ClassIndex(self.labels, self.num_classes, np.sort(self.rows[order[place_in_class < cap]]))

    def _labels_taking_part(self) -> np.ndarray:
        return np.asarray(self.labels) if self._kept is None else self.labels[self._kept]


def _row_type(num_images: int) -> type:
    return np.int32 if num_images < _NARROW else np.int64


_FORM = '{"images": [{"fpath": "...", "split": "train", "reason": "..."}, ...]}'


class _Image(msgspec.Struct):
    fpath: str
    split: str
    reason: str = ''


class _QuarantineFile(msgspec.Struct):
    images: list[_Image]


@dataclass(frozen=True)
class Quarantined:
    """What a file means for a split.

    Attributes:
        rows: in rising order.
        unknown: how many listed paths are not in the split.
        other_splits: how many entries are of other splits.
    """

    rows: np.ndarray
    unknown: int
    other_splits: int


def quarantined_rows(names: pa.LargeStringArray, file: str | Path, split: str) -> Quarantined:
    """Return the rows of a split that `file` lists.

    Args:
        names: (num_images,) paths as annotated; a path that stands there twice is quarantined twice.
        file: JSON of the form {"images": [{"fpath", "split", "reason"}, ...]}; other fields are ignored.
        split: entries of other splits do not count.

    Raises:
        UserError: no such file, or not of this form.
    """
    try:
        listed = msgspec.json.decode(Path(file).read_bytes(), type=_QuarantineFile).images
    except FileNotFoundError:
        raise UserError(f'DATASET.QUARANTINE {file}: no such file; tools/doctor.py writes one') from None
    except OSError as error:
        raise UserError(f'DATASET.QUARANTINE {file}: cannot be read ({error.strerror})') from None
    except msgspec.ValidationError as error:
        raise UserError(f'DATASET.QUARANTINE {file}: must be {_FORM} ({error})') from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f'DATASET.QUARANTINE {file}: not valid JSON ({error})') from None
    own = pa.array([image.fpath for image in listed if image.split == split], pa.large_string()).unique()
    rows = np.flatnonzero(pc.is_in(names, own).to_numpy(zero_copy_only=False))
    unknown = len(own) - int(pc.sum(pc.is_in(own, names)).as_py() or 0)
    return Quarantined(rows, unknown, sum(image.split != split for image in listed))
