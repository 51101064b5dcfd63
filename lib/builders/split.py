"""Splits as the scripts use them: images, labels and names, and what of them is trained on."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.dataset.annotations import ClassNames
from lib.dataset.images import ArrayImages, Images, SomeImages
from lib.dataset.index import ProductIndex, quarantined_rows
from lib.errors import UserError
from lib.runtime.log import LOGGER
from lib.runtime.shared_memory import to_shared_memory


@dataclass(frozen=True)
class Split:
    """Images with labels, ready to be loaded.

    Attributes:
        images: by row.
        labels: (num_images,) int32, in memory that workers share; -1 everywhere when the split has none.
        num_classes: labels are below it.
        names: (num_images,) Arrow strings, what to call each image: its path as annotated.
        source: what to call the split.
        by_class: rows sorted by class, where they are known.
    """

    images: Images
    labels: np.ndarray
    num_classes: int
    names: pa.StringArray | pa.LargeStringArray
    source: str
    by_class: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return bool((self.labels >= 0).all())

    def index(self) -> ProductIndex:
        """Return which rows belong to which class."""
        return ProductIndex(self.labels, self.num_classes, by_class=self.by_class)

    def digest(self) -> str:
        """Return a fingerprint of names and labels: the same for the same set, in the same order."""
        digest = hashlib.sha256(f'{self.num_classes} '.encode())
        digest.update(np.ascontiguousarray(self.labels, np.int32))
        # Arrow's own buffers (64-bit offsets, then bytes): no Python string an image.
        names = pa.concat_arrays([self.names])
        _, offsets, text = names.buffers()
        wide = np.int64 if pa.types.is_large_string(names.type) else np.int32
        offsets = np.frombuffer(offsets, wide)[names.offset :][: len(names) + 1].astype(np.int64)
        digest.update(offsets - offsets[0])
        digest.update(memoryview(text)[offsets[0] : offsets[-1]])
        return digest.hexdigest()


def some_of(split: Split, rows: np.ndarray) -> Split:
    """Return the images of some rows, in rising order, as a split."""
    return Split(
        SomeImages(split.images, rows),
        to_shared_memory(np.ascontiguousarray(split.labels[rows])),
        split.num_classes,
        split.names.take(pa.array(rows)),
        f'{split.source}, {len(rows)} of its images',
    )


@dataclass(frozen=True)
class TrainingData:
    """The training split, the validation split (None when there is none), and the classes' names.

    `kept`: rows of the training split that take part, in rising order; None means all.
    """

    train: Split
    valid: Split | None
    classes: ClassNames | None
    kept: np.ndarray | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; their numbers where there are no names."""
        return self.classes.names if self.classes else [str(label) for label in range(self.train.num_classes)]

    def shares_images(self) -> int:
        """Return how many validation images are training images as well."""
        if self.valid is None or isinstance(self.valid.images, ArrayImages):
            return 0
        valid, train = (split.names.cast(pa.large_string()) for split in (self.valid, self.train))
        if self.kept is not None:
            train = train.take(pa.array(self.kept))
        # A hash table of the small side, and another one of what was found: that of millions takes seconds.
        common = train.filter(pc.is_in(train, value_set=valid))
        return int(pc.sum(pc.is_in(valid, value_set=common)).as_py() or 0)

    def index(self) -> ProductIndex:
        """Return the training rows that take part, by class."""
        if self.kept is None:
            return self.train.index()
        return ProductIndex(self.train.labels, self.train.num_classes, self.kept)

    def train_digest(self) -> str:
        """Return a fingerprint of what is trained on: the split's own where all of it takes part."""
        if self.kept is None:
            return self.train.digest()
        kept = np.ascontiguousarray(self.kept, np.int64).tobytes()
        return hashlib.sha256(self.train.digest().encode() + kept).hexdigest()


def without_quarantined(data: TrainingData, file: str) -> TrainingData:
    """Leave out the training images that DATASET.QUARANTINE lists; rows keep their numbers.

    Raises:
        UserError: no such file, not of its form, or no training image is left.
    """
    if not file:
        return data
    found = quarantined_rows(data.train.names, file, 'train')
    if found.unknown:
        LOGGER.warning('%s: %d of its training images are not in %s', file, found.unknown, data.train.source)
    if found.other_splits:
        LOGGER.info('%s: %d entries of other splits are left alone', file, found.other_splits)
    LOGGER.info('%s: %d of %d training images take no part', file, len(found.rows), len(data.train))
    if not len(found.rows):
        return data
    kept = np.setdiff1d(np.arange(len(data.train)), found.rows, assume_unique=True)
    if not len(kept):
        raise UserError(f'DATASET.QUARANTINE {file} lists all {len(data.train)} images of {data.train.source}')
    before, after = (len(np.unique(labels)) for labels in (data.train.labels, data.train.labels[kept]))
    if after < before:
        LOGGER.warning('%s: %d classes have no training image left', file, before - after)
    return replace(data, kept=kept)
