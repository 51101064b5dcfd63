"""Splits: images with labels and names, from annotation files, folders and packed shards."""

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
from lib.dataset.folder import FolderDataset, class_name_of, labels_by_folder, split_folder
from lib.dataset.image_format import HEIC_HINT, can_read_heic
from lib.dataset.image_walk import ImageWalk, left_out_lines
from lib.dataset.images import FileImages, Images, SomeImages
from lib.dataset.index import ClassIndex
from lib.dataset.paths import PathColumn, TextPathRule, choose_path_rule, comparable_paths, path_as_text, refuse_urls
from lib.errors import UserError
from lib.runtime.log import LOGGER
from lib.runtime.mirror import is_mirrored
from lib.runtime.outline import outline
from lib.runtime.shared_memory import to_shared_memory
from lib.runtime.storage import exists
from lib.runtime.text import count_of, few_names, name_warnings, names_digest
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
        weights: (num_images,) float32 weights of the images in the training loss; None: all 1.
    """

    images: Images
    labels: np.ndarray
    num_classes: int
    names: pa.StringArray | pa.LargeStringArray
    source: str
    by_class: np.ndarray | None = None
    weights: np.ndarray | None = None

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
        self._update_with_names(digest)
        return digest.hexdigest()

    def names_digest(self) -> str:
        """Return a fingerprint of the names in their order, which corrected labels do not change."""
        digest = hashlib.sha256()
        self._update_with_names(digest)
        return digest.hexdigest()

    def _update_with_names(self, digest: 'hashlib._Hash') -> None:
        # Arrow's own buffers (64-bit offsets, then bytes): no Python string per image.
        names = pa.concat_arrays([self.composed_names])
        _, offsets, text = names.buffers()
        wide = np.int64 if pa.types.is_large_string(names.type) else np.int32
        offsets = np.frombuffer(offsets, wide)[names.offset :][: len(names) + 1].astype(np.int64)
        digest.update(offsets - offsets[0])
        digest.update(memoryview(text)[offsets[0] : offsets[-1]])


def some_of(split: DatasetSplit, rows: np.ndarray) -> DatasetSplit:
    """Return the images of some rows, in ascending order, as a split."""
    return DatasetSplit(
        SomeImages(split.images, rows),
        to_shared_memory(np.ascontiguousarray(split.labels[rows])),
        split.num_classes,
        split.names.take(pa.array(rows)),
        f'{split.source}, {len(rows)} of its images',
        weights=None if split.weights is None else split.weights[rows],
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
        annotations.weights,
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


def read_class_folders(root: str, *, valid_fraction: float, seed: int, nested: bool) -> FolderDataset:
    """Read class folders as `split_folder` does, and log what it reports."""
    read = split_folder(root, valid_fraction=valid_fraction, seed=seed, nested=nested)
    for line in read.warnings:
        LOGGER.warning('%s', line)
    for line in read.notes:
        LOGGER.info('%s', line)
    return read


def test_folder_split(folder: str, class_names: Sequence[str]) -> DatasetSplit:
    """Open every image in a folder; sub-folders that are named after classes are the labels.

    Raises:
        UserError: the folder has no images.
    """
    walk = ImageWalk(folder)
    paths = list(walk.images())
    left_out = left_out_lines(walk, 1)
    if not paths:
        raise UserError('; '.join([f'{folder}: no images in this folder', *left_out[:1]]))
    for line in left_out:
        LOGGER.info('%s', line)
    labels, unknown = labels_by_folder(paths, class_names)
    num_unknown = int((labels < 0).sum())
    if not num_unknown:
        LOGGER.info('%s: labels from its folders, which are named after classes', folder)
    elif num_unknown < len(paths):
        verbs = 'has no label, and does' if num_unknown == 1 else 'have no label, and do'
        LOGGER.warning('%s: %d of %d images %s not count in metrics', folder, num_unknown, len(paths), verbs)
        if unknown:
            LOGGER.warning('  folders that no class is named like: %s', few_names(unknown))
        loose = [path for path in paths if '/' not in path]
        if loose:
            LOGGER.warning('  images in no folder: %s', few_names(loose))
    elif unknown:
        LOGGER.info('%s: no labels, since no folder is named after a class', folder)
    for warning in name_warnings([class_name_of(name) for name in unknown], known=class_names):
        LOGGER.warning('%s: %s', folder, warning)
    return found_split(paths, labels, len(class_names), folder, folder)


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


def warn_about_other_classes(split: DatasetSplit, classes: ClassNames | None, names: Sequence[str]) -> None:
    """Warn if a split has as many classes as a model, but others than `names`, those of the model."""
    is_numbered = list(names) == [str(label) for label in range(len(names))]
    if classes is None or len(classes.names) != len(names) or is_numbered:
        return
    others = sorted({*classes.names} - {*names})
    if others:
        LOGGER.warning(
            '%s: %s unknown to the model: %s',
            split.source,
            count_of(len(others), 'class is', 'classes are'),
            few_names(others),
        )
        LOGGER.warning('  labels are matched by number, which is right only if these were renamed')


def is_packed(cfg: Config, kind: str) -> bool:
    """Return whether DATASET.SHARDS holds the split `kind`: train, valid or test."""
    if not cfg.DATASET.SHARDS:
        return False
    outline(cfg.DATASET.SHARDS)
    folder = Path(cfg.DATASET.SHARDS, kind)
    return folder.is_dir() or (is_mirrored(folder) and exists(folder / INDEX))


def packed_split(cfg: Config, kind: str) -> tuple[DatasetSplit, ClassNames | None]:
    """Open the split `kind` (train, valid, test) of DATASET.SHARDS, and the class names. Raises: UserError."""
    outline(cfg.DATASET.SHARDS)
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
