"""DATASET in the config -> the splits, checked against each other."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from yacs.config import CfgNode

from lib.dataset.annotations import Annotations, ClassNames, read_annotations, read_classes, read_test_images
from lib.dataset.cifar import load_cifar_lt
from lib.dataset.demo.generate import demo_is_complete, generate_demo
from lib.dataset.folder import find_class_folders, labels_by_folder, split_folder, walk_images
from lib.dataset.images import ArrayImages, FileImages, Images
from lib.dataset.index import ProductIndex
from lib.dataset.paths import PathColumn, settle_paths
from lib.dataset.quarantine import quarantined_rows
from lib.dataset.shards.images import ShardImages
from lib.dataset.shards.index import INDEX
from lib.errors import UserError
from lib.runtime.log import LOGGER
from lib.runtime.shared import share

_FALLBACK = 'to try everything at once: python main.py --config configs/demo.yaml'


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


def open_training_data(cfg: CfgNode) -> TrainingData:
    """Open both splits.

    Raises:
        UserError: anything missing or faulty; the splits disagree on num_classes; no training image.
    """
    data = _from_shards(cfg) if cfg.DATASET.SHARDS else _SOURCES[cfg.DATASET.NAME](cfg)
    if data.valid is not None and data.valid.num_classes != data.train.num_classes:
        raise UserError(
            f'{data.train.source} has num_classes {data.train.num_classes}, but {data.valid.source} has '
            f'{data.valid.num_classes}: both must list the same classes'
        )
    return data


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


def open_valid_split(cfg: CfgNode) -> Split:
    """Open the validation split alone where it has a file of its own, else as in training.

    Raises:
        UserError: there is none.
    """
    json = cfg.DATASET.VALID_JSON or str(Path(cfg.DATASET.ROOT, 'converted_val.json'))
    if cfg.DATASET.SHARDS:
        if _is_packed(cfg, 'valid'):
            return _packed_split(cfg, 'valid')[0]
        raise UserError(f'DATASET.SHARDS {cfg.DATASET.SHARDS} has no validation split')
    if cfg.DATASET.NAME == 'demo':
        _draw_demo(cfg)
    if cfg.DATASET.VALID_JSON or (cfg.DATASET.NAME in ('annotations', 'demo') and Path(json).exists()):
        return _split(read_annotations(json), cfg.DATASET.ROOT)
    valid = open_training_data(cfg).valid
    if valid is None:
        raise UserError('there is no validation split: give --DATASET_VALID_JSON FILE')
    return valid


def open_test_split(cfg: CfgNode, class_names: Sequence[str]) -> Split:
    """Open what test.py predicts: TEST_JSON, or every image in a folder (TEST_ROOT, else `test` in ROOT).

    Where neither TEST_JSON nor TEST_ROOT is given, the packed test split comes first.

    Raises:
        UserError: neither is there, or a fault in the file.
    """
    if not (cfg.DATASET.TEST_JSON or cfg.DATASET.TEST_ROOT) and _is_packed(cfg, 'test'):
        return _packed_split(cfg, 'test')[0]
    if cfg.DATASET.NAME.startswith('cifar'):
        return _from_cifar(cfg).valid
    if cfg.DATASET.NAME == 'demo' and not cfg.DATASET.SHARDS:
        _draw_demo(cfg)
    root, json, folder = _test_places(cfg)
    if cfg.DATASET.TEST_JSON or Path(json).exists():
        return _split(read_test_images(json, len(class_names)), root)
    if not folder or not Path(folder).is_dir():
        raise UserError(
            f'no test images: {json} is not there; give --DATASET_TEST_JSON FILE, or --DATASET_TEST_ROOT FOLDER to '
            'predict every image in a folder'
        )
    return _from_test_folder(folder, class_names)


def has_test_split(cfg: CfgNode) -> bool:
    """Whether there is something that open_test_split would open, or was told to."""
    _, json, folder = _test_places(cfg)
    given = cfg.DATASET.TEST_JSON or cfg.DATASET.TEST_ROOT or _is_packed(cfg, 'test')
    return bool(given) or Path(json).exists() or bool(folder and Path(folder).is_dir())


def _test_places(cfg: CfgNode) -> tuple[str, str, str]:
    """Return the folder of the test images, their JSON, and the folder that is searched without one."""
    root = cfg.DATASET.TEST_ROOT or cfg.DATASET.ROOT
    json = cfg.DATASET.TEST_JSON or str(Path(root, 'converted_test.json'))
    return root, json, cfg.DATASET.TEST_ROOT or (root and str(Path(root, 'test')))


def _from_test_folder(folder: str, class_names: Sequence[str]) -> Split:
    paths = list(walk_images(folder))
    if not paths:
        raise UserError(f'{folder}: no images in this folder')
    labels = labels_by_folder(paths, class_names)
    if labels[0] >= 0:
        LOGGER.info('%s: its folders are named as the classes, so they are the labels', folder)
    return _split(Annotations(_column(paths), labels, len(class_names), folder), folder)


def _from_annotations(cfg: CfgNode) -> TrainingData:
    dataset = cfg.DATASET
    if not dataset.ROOT and not dataset.TRAIN_JSON:
        raise UserError('no data given: --DATASET_ROOT FOLDER (one sub-folder a class), or --DATASET_TRAIN_JSON FILE')
    if dataset.ROOT and not Path(dataset.ROOT).is_dir() and not dataset.TRAIN_JSON:
        raise UserError(f'DATASET.ROOT {dataset.ROOT}: no such folder. {_where_from(cfg)}')
    train_json = dataset.TRAIN_JSON or str(Path(dataset.ROOT, 'converted_train.json'))
    if not Path(train_json).exists():
        if dataset.TRAIN_JSON:
            raise UserError(f'DATASET.TRAIN_JSON {train_json}: no such file. {_where_from(cfg)}')
        return _from_class_folders(cfg)
    train = _split(read_annotations(train_json), dataset.ROOT)
    valid_json = dataset.VALID_JSON or str(Path(dataset.ROOT, 'converted_val.json'))
    valid = None
    if dataset.VALID_JSON or Path(valid_json).exists():
        valid = _split(read_annotations(valid_json), dataset.ROOT)
    return TrainingData(train, valid, read_classes(Path(train_json).with_name('classes.json'), train.num_classes))


def _from_shards(cfg: CfgNode) -> TrainingData:
    if not Path(cfg.DATASET.SHARDS).is_dir():
        raise UserError(
            f'DATASET.SHARDS {cfg.DATASET.SHARDS}: no such folder; python tools/pack.py --PACK_OUT '
            f'{cfg.DATASET.SHARDS} packs into it'
        )
    train, classes = _packed_split(cfg, 'train')
    return TrainingData(train, _packed_split(cfg, 'valid')[0] if _is_packed(cfg, 'valid') else None, classes)


def _is_packed(cfg: CfgNode, kind: str) -> bool:
    return bool(cfg.DATASET.SHARDS) and Path(cfg.DATASET.SHARDS, kind).is_dir()


def _packed_split(cfg: CfgNode, kind: str) -> tuple[Split, ClassNames | None]:
    """Open `kind` (train, valid, test) of DATASET.SHARDS, and the classes' names."""
    folder = Path(cfg.DATASET.SHARDS, kind)
    images = ShardImages(folder / INDEX)
    index, contents = images.index, images.index.contents
    for warning in index.check():
        LOGGER.warning('%s', warning)
    split = Split(images, index.labels, contents.num_classes, index.names, str(folder))
    return split, None if contents.class_names is None else ClassNames(contents.class_names, contents.parents)


def _from_class_folders(cfg: CfgNode) -> TrainingData:
    root, fraction = cfg.DATASET.ROOT, cfg.DATASET.VALID_FRACTION
    if cfg.DATASET.SOURCE and not find_class_folders(root):
        raise UserError(f'{Path(root, "converted_train.json")}: no such file. {_where_from(cfg)}')
    train, valid, names = split_folder(root, valid_fraction=fraction, seed=cfg.SEED)
    LOGGER.info(
        '%s: no annotation file, so its %d class folders are the classes: %d images for training, %d for validation '
        '(DATASET.VALID_FRACTION %g, split by SEED)', root, len(names), len(train.paths), len(valid.paths), fraction,
    )  # fmt: skip
    splits = [
        _split(
            Annotations(_column(part.paths), part.labels, len(names), f'{root} ({kind})'),
            root,
        )
        for kind, part in (('train', train), ('valid', valid))
        if part.paths
    ]
    return TrainingData(splits[0], splits[1] if len(splits) > 1 else None, ClassNames(names, []))


def _from_demo(cfg: CfgNode) -> TrainingData:
    _draw_demo(cfg)
    return _from_annotations(cfg)


def _draw_demo(cfg: CfgNode) -> None:
    # The demo is one fixed set: SEED varies the training, not the pictures.
    if not demo_is_complete(Path(cfg.DATASET.ROOT), 0):
        LOGGER.info('drawing the demo photos into %s (once)', cfg.DATASET.ROOT)
        generate_demo(Path(cfg.DATASET.ROOT), seed=0)


def _from_cifar(cfg: CfgNode) -> TrainingData:
    dataset = cfg.DATASET
    train_images, train_labels, valid_images, valid_labels, names = load_cifar_lt(
        dataset.ROOT,
        dataset.NAME,
        imbalance_type=dataset.IMBALANCE_TYPE,
        imbalance_ratio=dataset.IMBALANCE_RATIO,
        seed=cfg.SEED,
    )

    def split(images: np.ndarray, labels: np.ndarray, kind: str) -> Split:
        rows = pa.array((f'{kind} image {row}' for row in range(len(labels))), pa.large_string())
        return Split(ArrayImages(images), labels.astype(np.int32), len(names), rows, f'{dataset.NAME} ({kind})')

    train, valid = split(train_images, train_labels, 'train'), split(valid_images, valid_labels, 'test')
    return TrainingData(train, valid, ClassNames(list(names), []))


def _split(annotations: Annotations, root: str) -> Split:
    for warning in annotations.warnings:
        LOGGER.warning('%s', warning)
    rule, note = settle_paths(annotations.paths, root, annotations.source)
    if note:
        LOGGER.info('%s', note)
    return Split(
        FileImages(annotations.paths.read_by(rule), root),
        share(annotations.labels),
        annotations.num_classes,
        annotations.paths.arrow,
        annotations.source,
        annotations.by_class,
    )


def _column(paths: list[str]) -> PathColumn:
    return PathColumn(pa.array(paths, pa.large_string()))


def _where_from(cfg: CfgNode) -> str:
    return f'{cfg.DATASET.SOURCE}; {_FALLBACK}' if cfg.DATASET.SOURCE else f'Check the path; {_FALLBACK}'


_SOURCES: dict[str, Callable[[CfgNode], TrainingData]] = {
    'annotations': _from_annotations,
    'demo': _from_demo,
    'cifar10_lt': _from_cifar,
    'cifar100_lt': _from_cifar,
}
