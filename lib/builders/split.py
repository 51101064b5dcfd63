"""Splits: images with labels and names, and the rows of the training split that are used."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.config.defaults import Config
from lib.dataset.annotations import Annotations, ClassNames, read_classes
from lib.dataset.corrections import quarantined_rows
from lib.dataset.image_format import HEIC_HINT, can_read_heic
from lib.dataset.images import ArrayImages, FileImages, Images, SomeImages
from lib.dataset.index import ClassIndex
from lib.dataset.paths import PathColumn, TextPathRule, choose_path_rule, comparable_paths, path_as_text, refuse_urls
from lib.errors import UserError
from lib.runtime.files import finish_set
from lib.runtime.log import LOGGER
from lib.runtime.shared_memory import to_shared_memory
from lib.runtime.text import few_names, names_digest
from lib.shards.images import ShardImages
from lib.shards.index import INDEX, INFO, SETTINGS


@dataclass(frozen=True)
class DatasetSplit:
    """Images with labels.

    Attributes:
        images: by row.
        labels: (num_images,) int32, in shared memory; all -1 in a split without labels.
        num_classes: labels are below it.
        names: (num_images,) Arrow strings: the path of each image as annotated.
        source: name of the split for messages.
        by_class: rows sorted by class, if known.
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
    def labeled(self) -> bool:
        """Return whether every image has a label."""
        return bool((self.labels >= 0).all())

    @property
    def heic_hint(self) -> str:
        """Return how to read HEIC photos, after '; ', if some are named so and cannot be read; else ''."""
        return f'; {HEIC_HINT}' if _num_unread_heic(self.names) else ''

    @cached_property
    def composed_names(self) -> pa.StringArray | pa.LargeStringArray:
        """Return the names in NFC and with `/` for backslashes, to compare them; converting millions takes seconds."""
        return comparable_paths(self.names)

    def index(self) -> ClassIndex:
        """Return the rows of each class."""
        return ClassIndex(self.labels, self.num_classes, by_class=self.by_class)

    def digest(self) -> str:
        """Return a fingerprint of names, in NFC, and labels, in their order."""
        digest = hashlib.sha256(f'{self.num_classes} '.encode())
        digest.update(np.ascontiguousarray(self.labels, np.int32).data)
        # Arrow's own buffers (64-bit offsets, then bytes): no Python string per image.
        names = pa.concat_arrays([self.composed_names])
        _, offsets, text = names.buffers()
        wide = np.int64 if pa.types.is_large_string(names.type) else np.int32
        offsets = np.frombuffer(offsets, wide)[names.offset :][: len(names) + 1].astype(np.int64)
        digest.update(offsets - offsets[0])
        digest.update(memoryview(text)[offsets[0] : offsets[-1]])
        return digest.hexdigest()


def some_of(split: DatasetSplit, rows: np.ndarray) -> DatasetSplit:
    """Return the images of some rows, in ascending order, as a split."""
    return DatasetSplit(
        SomeImages(split.images, rows),
        to_shared_memory(np.ascontiguousarray(split.labels[rows])),
        split.num_classes,
        split.names.take(pa.array(rows)),
        f'{split.source}, {len(rows)} of its images',
    )


def annotated_split(annotations: Annotations, root: str, train: Annotations | None = None) -> DatasetSplit:
    """Return the images of an annotation file, whose paths are below `root`.

    `train`: file of the training split, which must have been written with the same class names.

    Raises:
        UserError: images are not files, or the file was written with other class names.
    """
    _check_class_names(annotations, train)
    for warning in annotations.warnings:
        LOGGER.warning('%s', warning)
    refuse_urls(annotations.paths, root, annotations.source)
    try:
        rule, line = choose_path_rule(annotations.paths, root, annotations.source)
    except UserError as error:
        raise UserError(f'{error}; set DATASET.ROOT to the folder that the paths start from') from None
    if line:
        LOGGER.info('%s', line)
    _warn_about_heic(annotations.paths.arrow, annotations.source)
    return DatasetSplit(
        FileImages(annotations.paths.with_rule(rule), root),
        to_shared_memory(annotations.labels),
        annotations.num_classes,
        annotations.paths.arrow,
        annotations.source,
        annotations.by_class,
    )


def _check_class_names(annotations: Annotations, train: Annotations | None) -> None:
    """Raise UserError if the file has a digest of other class names than classes.json beside it, or than `train`."""
    if train is not None and '' != train.classes_digest != annotations.classes_digest != '':
        raise UserError(
            f'{train.source} and {annotations.source}: were written with different class names; convert all images '
            'again, or give files of the same conversion'
        )
    path = Path(annotations.source).with_name('classes.json')
    classes = read_classes(path, annotations.num_classes, annotations.source) if annotations.classes_digest else None
    if classes is not None and names_digest(classes.names) != annotations.classes_digest:
        raise UserError(
            f'{annotations.source}: is of another conversion than {path}, which has other class names; convert all '
            'images again, or remove the former. If you renamed classes: remove "classes_digest" at its end'
        )


def found_split(paths: list[str], labels: np.ndarray, num_classes: int, source: str, root: str) -> DatasetSplit:
    """Return images that were found in a folder; their names are valid text, also where a path is not."""
    paths_as_text = PathColumn(pa.array(map(path_as_text, paths), pa.large_string()), TextPathRule())
    _warn_about_heic(paths_as_text.arrow, source)
    return DatasetSplit(
        FileImages(paths_as_text, root), to_shared_memory(labels), num_classes, paths_as_text.arrow, source
    )


def _warn_about_heic(names: pa.Array, source: str) -> None:
    number = _num_unread_heic(names)
    if number:
        LOGGER.warning('%s: %d %s HEIC; %s', source, number, 'image is' if number == 1 else 'images are', HEIC_HINT)


def _num_unread_heic(names: pa.Array) -> int:
    """Return the number of HEIC files if they cannot be read; 0 if they can."""
    if can_read_heic():
        return 0
    return pc.sum(pc.match_substring_regex(names, r'\.hei[cf]$', ignore_case=True)).as_py() or 0


def in_class_order(split: DatasetSplit, classes: ClassNames | None, names: Sequence[str]) -> DatasetSplit:
    """Return a split with the labels of the classes `names` of a model.

    They differ from those of the split only if it has exactly these classes, by name, in another order: class folders
    are sorted, and a list of classes may have been written a second time.
    """
    if classes is None or classes.names == list(names) or sorted(classes.names) != sorted(names):
        return split
    label_of = {name: label for label, name in enumerate(names)}
    if len(label_of) < len(names):
        return split
    LOGGER.info('%s: labels renumbered: the model has its classes in another order', split.source)
    labels = np.array([*(label_of[name] for name in classes.names), -1], np.int32)[split.labels]
    return replace(split, labels=to_shared_memory(labels), by_class=None)


@dataclass(frozen=True)
class TrainingData:
    """The training split, the validation split, and the class names.

    Attributes:
        valid: None if there is none.
        classes: None if the classes have no names.
        train_rows: rows of the training split to train on, in ascending order; None: all.
    """

    train: DatasetSplit
    valid: DatasetSplit | None
    classes: ClassNames | None
    train_rows: np.ndarray | None = None

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

    def train_digest(self) -> str:
        """Return a fingerprint of the images to train on; that of the split if these are all its images."""
        if self.train_rows is None:
            return self.train.digest()
        rows = np.ascontiguousarray(self.train_rows, np.int64).tobytes()
        return hashlib.sha256(self.train.digest().encode() + rows).hexdigest()


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
    if not len(found.rows):
        return data
    rows = np.setdiff1d(np.arange(len(data.train)), found.rows, assume_unique=True)
    if not len(rows):
        raise UserError(f'DATASET.QUARANTINE {file} lists all {len(data.train)} images of {data.train.source}')
    emptied = np.setdiff1d(data.train.labels, data.train.labels[rows])
    if len(emptied):
        names = few_names([data.class_names[label] for label in emptied.tolist()])
        have = '1 class has' if len(emptied) == 1 else f'{len(emptied)} classes have'
        LOGGER.warning('%s: %s no training image left: %s', file, have, names)
    return replace(data, train_rows=rows)


def open_packed(cfg: Config) -> TrainingData:
    """Open the packed training and validation splits. Raises: UserError."""
    if not Path(cfg.DATASET.SHARDS).is_dir():
        raise UserError(
            f'DATASET.SHARDS {cfg.DATASET.SHARDS}: no such folder; python tools/pack.py --PACK_OUT '
            f'{cfg.DATASET.SHARDS} packs into it'
        )
    train, classes = packed_split(cfg, 'train')
    return TrainingData(train, packed_split(cfg, 'valid')[0] if is_packed(cfg, 'valid') else None, classes)


def is_packed(cfg: Config, kind: str) -> bool:
    """Return whether DATASET.SHARDS holds the split `kind`: train, valid or test."""
    return bool(cfg.DATASET.SHARDS) and Path(cfg.DATASET.SHARDS, kind).is_dir()


def packed_split(cfg: Config, kind: str) -> tuple[DatasetSplit, ClassNames | None]:
    """Open the split `kind` (train, valid, test) of DATASET.SHARDS, and the class names. Raises: UserError."""
    folder = Path(cfg.DATASET.SHARDS, kind)
    if (folder / SETTINGS).exists() and not Path(cfg.DATASET.SHARDS, INFO).exists():
        raise UserError(
            f'DATASET.SHARDS {cfg.DATASET.SHARDS}: packing was stopped before {INFO} was written; run the same command '
            f'again: python tools/pack.py --PACK_OUT {cfg.DATASET.SHARDS}'
        )
    try:
        images = ShardImages(folder / INDEX)
        warnings = images.index.check()
    except UserError as error:
        raise UserError(f'{error}; pack again: python tools/pack.py --PACK_OUT {cfg.DATASET.SHARDS}') from None
    index, contents = images.index, images.index.contents
    LOGGER.info('%s: %d packed images (DATASET.SHARDS)', folder, len(images))
    for warning in warnings:
        LOGGER.warning('%s', warning)
    split = DatasetSplit(images, index.labels, contents.num_classes, index.names, str(folder))
    return split, None if contents.class_names is None else ClassNames(contents.class_names, contents.parents)
