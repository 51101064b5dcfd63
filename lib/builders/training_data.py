"""The splits that a model is trained on, as DATASET.CORRECTIONS, VALID_CORRECTIONS and QUARANTINE change them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.builders.split import DatasetSplit, in_class_order, some_of
from lib.config.defaults import Config
from lib.dataset.annotations import ClassNames
from lib.dataset.corrections import CorrectedRows, apply_decisions, describe_counts, quarantined_rows, read_decisions
from lib.dataset.images import ArrayImages
from lib.dataset.index import ClassIndex
from lib.errors import UserError
from lib.runtime.files import finish_set
from lib.runtime.log import LOGGER
from lib.runtime.shared_memory import to_shared_memory
from lib.runtime.text import count_of, few_names, first_few

KEYS = {'train': 'CORRECTIONS', 'valid': 'VALID_CORRECTIONS'}
_MAX_CLASSES = 10  # recorded


@dataclass(frozen=True)
class TrainingData:
    """The training split, the validation split, and the class names.

    Attributes:
        valid: None if there is none.
        classes: None if the classes have no names.
        train_rows: rows of the training split to train on, in ascending order; None: all.
        dropped: rows of the training split that DATASET.CORRECTIONS excludes, in ascending order.
        corrections: what corrections changed, as in TrainingSet.
    """

    train: DatasetSplit
    valid: DatasetSplit | None
    classes: ClassNames | None
    train_rows: np.ndarray | None = None
    dropped: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    corrections: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; their numbers if there are no names."""
        return self.classes.names if self.classes else [str(label) for label in range(self.train.num_classes)]

    def in_class_order(self, names: Sequence[str]) -> 'TrainingData':
        """Return the data with the labels of the classes `names` of a model; see in_class_order."""
        train = in_class_order(self.train, self.classes, names)
        if self.classes is None or train is self.train:
            return self
        valid = None if self.valid is None else in_class_order(self.valid, self.classes, names)
        parents_of = dict(zip(self.classes.names, self.classes.parents, strict=False))
        parents = [parents_of[name] for name in names] if parents_of else []
        return replace(self, train=train, valid=valid, classes=ClassNames(list(names), parents))

    def shares_images(self) -> int:
        """Return the number of validation images that are training images too."""
        if self.valid is None or isinstance(self.valid.images, ArrayImages):
            return 0
        valid, train = (split.composed_names.cast(pa.large_string()) for split in (self.valid, self.train))
        if self.train_rows is not None:
            train = train.take(pa.array(self.train_rows))
        # Two hash tables of small sets, since one of millions of names takes seconds.
        common = train.filter(pc.is_in(train, value_set=valid))
        return int(pc.sum(pc.is_in(valid, value_set=common)).as_py() or 0)

    def index(self) -> ClassIndex:
        """Return the training rows to train on, by class."""
        if self.train_rows is None:
            return self.train.index()
        return ClassIndex(self.train.labels, self.train.num_classes, self.train_rows)

    def original_class_counts(self) -> np.ndarray:
        """Return (num_classes,) int64 images per class once labels are corrected, before quarantine and HEAD_CAP."""
        counts, num_classes = np.bincount, self.train.num_classes
        labels = self.train.labels
        return counts(labels, minlength=num_classes) - counts(labels[self.dropped], minlength=num_classes)

    def train_digest(self) -> str:
        """Return a fingerprint of the images to train on; that of the split if these are all, with weight 1."""
        digest = self.train.digest()
        used = self.train_rows, self.train.weights
        columns = [b'' if column is None else np.ascontiguousarray(column).tobytes() for column in used]
        return hashlib.sha256(b''.join([digest.encode(), *columns])).hexdigest() if any(columns) else digest


def with_corrections(cfg: Config, data: TrainingData, *, drop: bool = True) -> TrainingData:
    """Return the data with the labels, images and weights that the decisions for each split change.

    Row numbers of the training split do not change; dropped images of the validation split are removed.

    Args:
        drop: False: dropped images remain in both splits, for tools that read every image.

    Raises:
        UserError: no such file, invalid content, contradicting decisions, or no image is left.
    """
    if cfg.DATASET.CORRECTIONS:
        changes, record = _apply(cfg, 'train', data.train, data.class_names)
        train = replace(
            data.train,
            labels=to_shared_memory(changes.labels),
            by_class=None,
            weights=_new_weights(data.train, changes),
        )
        file = f'DATASET.CORRECTIONS {cfg.DATASET.CORRECTIONS}'
        before = data.train.labels
        data = replace(data, train=train, dropped=changes.dropped, corrections={'train': record})
        data = _without_rows(data, changes.dropped, file, before) if drop else data
    if cfg.DATASET.VALID_CORRECTIONS and data.valid is None:
        raise UserError(f'DATASET.VALID_CORRECTIONS {cfg.DATASET.VALID_CORRECTIONS}: there is no validation split')
    if data.valid is not None:
        valid, records = corrected_valid(cfg, data.valid, data.class_names, drop=drop)
        data = replace(data, valid=valid, corrections={**data.corrections, **records})
    return data


def corrected_valid(
    cfg: Config, split: DatasetSplit, class_names: Sequence[str], *, drop: bool = True
) -> tuple[DatasetSplit, dict[str, dict[str, Any]]]:
    """Return the validation split as DATASET.VALID_CORRECTIONS corrects it, and the record of that, {'valid': ...}.

    Raises:
        UserError: as `with_corrections`.
    """
    if not cfg.DATASET.VALID_CORRECTIONS:
        return split, {}
    changes, record = _apply(cfg, 'valid', split, class_names)
    if len(changes.weighted):
        LOGGER.warning('%s: weights have no effect in validation', cfg.DATASET.VALID_CORRECTIONS)
    if len(changes.relabeled):
        split = replace(split, labels=to_shared_memory(changes.labels), by_class=None)
    if drop and len(changes.dropped):
        rows = np.setdiff1d(np.arange(len(split)), changes.dropped, assume_unique=True)
        if not len(rows):
            raise UserError(
                f'DATASET.VALID_CORRECTIONS {cfg.DATASET.VALID_CORRECTIONS} drops all images of {split.source}'
            )
        split = some_of(split, rows)
    return split, {'valid': record}


def corrected_rows(cfg: Config, split: DatasetSplit, class_names: Sequence[str]) -> np.ndarray:
    """Return the rows of the validation split that DATASET.VALID_CORRECTIONS relabels or drops, in ascending order.

    Raises:
        UserError: as `with_corrections`.
    """
    if not cfg.DATASET.VALID_CORRECTIONS:
        return np.zeros(0, np.int64)
    changes, _ = _apply(cfg, 'valid', split, class_names)
    return np.union1d(changes.relabeled, changes.dropped)


def _apply(
    cfg: Config, kind: str, split: DatasetSplit, class_names: Sequence[str]
) -> tuple[CorrectedRows, dict[str, Any]]:
    """Return the changes to a split, and their record for checkpoints and reports; log them."""
    file = cfg.DATASET[KEYS[kind]]
    finish_set(Path(file).parent)
    try:
        decisions = read_decisions(file, kind)
        changes = apply_decisions(decisions, split.composed_names, split.labels, class_names, file)
    except UserError as error:
        raise UserError(f'DATASET.{KEYS[kind]} {error}') from None
    counts = changes.counts
    LOGGER.info('%s: %s', file, describe_counts(counts))
    if counts['stale']:
        phrases = [*changes.stale, *[''] * (counts['stale'] - len(changes.stale))]
        stale = count_of(counts['stale'], 'decision is', 'decisions are')
        LOGGER.warning('%s: %s stale, and not applied: %s', file, stale, first_few(phrases))
    digest = hashlib.sha256(msgspec.json.encode(decisions)).hexdigest()
    classes = _most_changed(split.labels, changes, class_names)
    return changes, {'file': file, 'digest': digest, 'counts': counts, 'classes': classes}


def _most_changed(before: np.ndarray, changes: CorrectedRows, class_names: Sequence[str]) -> list[list[Any]]:
    """Return [name, images that left it, images that came in] of the classes with the most changes."""
    rows = changes.relabeled
    left = np.bincount(before[np.concatenate([rows, changes.dropped])], minlength=len(class_names))
    came = np.bincount(changes.labels[rows], minlength=len(class_names))
    order = np.argsort(-(left + came), kind='stable')[:_MAX_CLASSES]
    return [[class_names[c], int(left[c]), int(came[c])] for c in order.tolist() if left[c] + came[c]]


def _new_weights(split: DatasetSplit, changes: CorrectedRows) -> np.ndarray | None:
    if not len(changes.weighted):
        return split.weights
    weights = np.ones(len(split), np.float32) if split.weights is None else np.array(split.weights)
    weights[changes.weighted] = changes.weights
    return None if (weights == 1).all() else weights


def without_quarantined(data: TrainingData, file: str) -> TrainingData:
    """Return the data without the training images that a quarantine file lists; row numbers do not change.

    Raises:
        UserError: no such file, invalid content, or no training image is left.
    """
    if not file:
        return data
    finish_set(Path(file).parent)
    try:
        found = quarantined_rows(data.train.composed_names, file, 'train')
    except UserError as error:
        raise UserError(f'DATASET.QUARANTINE {error}') from None
    if found.num_unknown:
        are = 'is' if found.num_unknown == 1 else 'are'
        LOGGER.warning('%s: %d of its training images %s not in %s', file, found.num_unknown, are, data.train.source)
    if found.num_other:
        LOGGER.info('%s: %d entries of other splits ignored', file, found.num_other)
    LOGGER.info('%s: %d of %d training images excluded', file, len(found.rows), len(data.train))
    return _without_rows(data, found.rows, f'DATASET.QUARANTINE {file}', data.train.labels)


def _without_rows(data: TrainingData, excluded: np.ndarray, source: str, before: np.ndarray) -> TrainingData:
    """Return the data without some more training rows, with a warning about classes that lose their last image.

    Args:
        source: key and file that exclude them.
        before: (num_images,) labels before the file was applied.

    Raises:
        UserError: no image is left.
    """
    former = np.arange(len(data.train)) if data.train_rows is None else data.train_rows
    rows = np.setdiff1d(former, excluded, assume_unique=True)
    if not len(rows):
        raise UserError(f'{source} lists all {len(data.train)} images of {data.train.source}')
    emptied = np.setdiff1d(before[former], data.train.labels[rows])
    if len(emptied):
        names = few_names([data.class_names[label] for label in emptied.tolist()])
        have = '1 class has' if len(emptied) == 1 else f'{len(emptied)} classes have'
        LOGGER.warning('%s: %s no training image left: %s', source.partition(' ')[2], have, names)
    return data if len(rows) == len(former) else replace(data, train_rows=rows)
