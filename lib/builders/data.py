"""DATASET -> the splits, from annotation files, class folders, CIFAR files or packed shards."""

from collections.abc import Callable, Sequence, Sized
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from lib.builders.split import (
    DatasetSplit,
    annotated_split,
    found_split,
    in_class_order,
    is_packed,
    packed_split,
    read_class_folders,
    test_folder_split,
    warn_about_other_classes,
)
from lib.builders.training_data import (
    TrainingData,
    corrected_rows,
    corrected_valid,
    with_corrections,
    without_quarantined,
)
from lib.config.defaults import Config
from lib.dataset.annotations import ClassNames, read_annotations, read_classes, read_test_images
from lib.dataset.folder import NoClassFolders
from lib.dataset.images import ArrayImages
from lib.demo.generate import generate_demo
from lib.errors import UserError
from lib.formats.cifar import load_cifar_lt
from lib.formats.decisions import convert_decisions, holds_decisions
from lib.runtime.files import file_exists
from lib.runtime.log import LOGGER
from lib.runtime.shared_memory import to_shared_memory
from lib.runtime.text import count_of, name_warnings, rounded_code_warnings

_FALLBACK = 'to try everything at once: python main.py --config configs/demo.yaml'


def open_training_data(cfg: Config, *, quarantine: bool = True) -> TrainingData:
    """Open the training and validation splits, corrected, without the training images that DATASET.QUARANTINE lists.

    Args:
        quarantine: False: ignore DATASET.QUARANTINE, for tools that read every image; corrections change labels only.

    Raises:
        UserError: files are missing or invalid; the splits differ in num_classes; no training image is left.
    """
    data = with_corrections(cfg, _open_data(cfg), drop=quarantine)
    return without_quarantined(data, cfg.DATASET.QUARANTINE) if quarantine else data


def _open_data(cfg: Config) -> TrainingData:
    """Open the splits as annotated. Raises: UserError as `open_training_data`."""
    data = _open_packed(cfg) if cfg.DATASET.SHARDS else _SOURCES[cfg.DATASET.NAME](cfg)
    if data.valid is not None and data.valid.num_classes != data.train.num_classes:
        raise UserError(
            f'{data.train.source} has num_classes {data.train.num_classes}, but {data.valid.source} has '
            f'{data.valid.num_classes}: both must list the same classes'
        )
    names = data.classes.names if data.classes else []
    for warning in [*name_warnings(names), *rounded_code_warnings(names)]:
        LOGGER.warning('%s: %s', data.train.source, warning)
    if cfg.DATASET.NESTED_CLASSES and not any('/' in name for name in names):
        LOGGER.warning('%s: DATASET.NESTED_CLASSES has no effect: no class is a folder in a folder', data.train.source)
    return data


def _open_packed(cfg: Config) -> TrainingData:
    """Open the packed training and validation splits. Raises: UserError."""
    if not Path(cfg.DATASET.SHARDS).is_dir():
        raise UserError(
            f'DATASET.SHARDS {cfg.DATASET.SHARDS}: no such folder; python tools/pack.py --PACK_OUT '
            f'{cfg.DATASET.SHARDS} packs into it'
        )
    train, classes = packed_split(cfg, 'train')
    return TrainingData(train, packed_split(cfg, 'valid')[0] if is_packed(cfg, 'valid') else None, classes)


def open_valid_split(cfg: Config, class_names: Sequence[str] = ()) -> DatasetSplit:
    """Open the validation split, corrected: from its own file if there is one, else as in training.

    Args:
        class_names: class names of a model; if the split has these classes in another order, its labels are renumbered.

    Raises:
        UserError: there is no validation split.
    """
    split, classes, names = _valid_with_names(cfg, class_names)
    return in_class_order(corrected_valid(cfg, split, names)[0], classes, class_names)


def open_uncorrected_valid_split(cfg: Config, class_names: Sequence[str]) -> tuple[DatasetSplit, np.ndarray]:
    """Open the validation split as `open_valid_split` does, but as it is annotated.

    Returns:
        The split, and its rows that DATASET.VALID_CORRECTIONS relabels or drops.
    """
    split, classes, names = _valid_with_names(cfg, class_names)
    return in_class_order(split, classes, class_names), corrected_rows(cfg, split, names)


def _valid_with_names(cfg: Config, class_names: Sequence[str]) -> tuple[DatasetSplit, ClassNames | None, Sequence[str]]:
    """Return the split, its classes if they are known, and their names, else those of the model, else numbers."""
    split, classes = _valid_split(cfg)
    warn_about_other_classes(split, classes, class_names)
    if classes is not None:
        return split, classes, classes.names
    numbers = [str(label) for label in range(split.num_classes)]
    return split, None, class_names if len(class_names) == split.num_classes else numbers


def _valid_split(cfg: Config) -> tuple[DatasetSplit, ClassNames | None]:
    json = cfg.DATASET.VALID_JSON or str(Path(cfg.DATASET.ROOT, 'converted_val.json'))
    if cfg.DATASET.SHARDS:
        if is_packed(cfg, 'valid'):
            return packed_split(cfg, 'valid')
        raise UserError(f'DATASET.SHARDS {cfg.DATASET.SHARDS} has no validation split')
    if cfg.DATASET.NAME == 'demo':
        _draw_demo(cfg)
    if cfg.DATASET.VALID_JSON or (cfg.DATASET.NAME in ('annotations', 'demo') and file_exists(json)):
        split, classes = annotated_split(read_annotations(json), cfg.DATASET.ROOT), None
        with suppress(UserError):  # in a folder with files of other data, it may not be of this split
            classes = read_classes(Path(json).with_name('classes.json'), split.num_classes)
        return split, classes
    data = _open_data(cfg)
    if data.valid is None:
        raise UserError('there is no validation split: give --DATASET_VALID_JSON FILE')
    return data.valid, data.classes


def open_test_split(cfg: Config, class_names: Sequence[str]) -> DatasetSplit:
    """Open the images to predict: TEST_JSON, or every image in a folder (TEST_ROOT, else `test` in ROOT).

    A packed test split is used if neither TEST_JSON nor TEST_ROOT is given.

    Raises:
        UserError: neither exists, or the file is invalid.
    """
    if not (cfg.DATASET.TEST_JSON or cfg.DATASET.TEST_ROOT) and is_packed(cfg, 'test'):
        return packed_split(cfg, 'test')[0]
    if cfg.DATASET.NAME.startswith('cifar'):
        valid = _from_cifar(cfg).valid
        assert valid is not None
        return valid
    if cfg.DATASET.NAME == 'demo' and not cfg.DATASET.SHARDS:
        _draw_demo(cfg)
    root, json, folder = _test_paths(cfg)
    if cfg.DATASET.TEST_JSON or file_exists(json):
        return annotated_split(read_test_images(json, len(class_names)), root)
    if not folder or not Path(folder).is_dir():
        raise UserError(
            f'no test images: {json} does not exist; give --DATASET_TEST_JSON FILE, or --DATASET_TEST_ROOT FOLDER to '
            'predict every image in a folder'
        )
    return test_folder_split(folder, class_names)


def has_test_split(cfg: Config) -> bool:
    """Return whether a test split exists, or is named by an option."""
    _, json, folder = _test_paths(cfg)
    given = cfg.DATASET.TEST_JSON or cfg.DATASET.TEST_ROOT or is_packed(cfg, 'test')
    return bool(given) or file_exists(json) or bool(folder and Path(folder).is_dir())


def open_named_images(source: str, *, nested: bool) -> tuple[DatasetSplit, ClassNames]:
    """Open labeled images with their classes: class folders, an annotation JSON beside its classes.json, or decisions.

    Relative paths of a JSON are under its own folder. Classes without images are omitted; without classes.json, the
    names are numbers.

    Args:
        nested: as DATASET.NESTED_CLASSES.

    Raises:
        UserError: neither exists, or it is invalid.
    """
    if Path(source).is_dir():
        read = read_class_folders(source, valid_fraction=0.0, seed=0, nested=nested)
        paths, labels = read.train.paths + read.valid.paths, np.concatenate([read.train.labels, read.valid.labels])
        return found_split(paths, labels, len(read.names), source, source), ClassNames(read.names, read.parents)
    if holds_decisions(source):
        decided = convert_decisions(Path(source))
        paths, labels = decided.splits['train'].paths, np.asarray(decided.splits['train'].labels)
        split = found_split(paths, labels, len(decided.names), source, str(decided.root))
        return split, ClassNames(decided.names, [])
    found = read_annotations(source)
    classes = read_classes(Path(source).with_name('classes.json'), found.num_classes, source)
    used, labels = np.unique(found.labels, return_inverse=True)
    names = [classes.names[label] if classes else str(label) for label in used.tolist()]
    parents = [classes.parents[label] for label in used.tolist()] if classes and classes.parents else []
    split = annotated_split(found, str(Path(source).parent))
    split = replace(split, labels=to_shared_memory(labels.astype(np.int32)), num_classes=len(names), by_class=None)
    return split, ClassNames(names, parents)


def _test_paths(cfg: Config) -> tuple[str, str, str]:
    """Return the root of the test images, their JSON, and the folder to search if that does not exist."""
    root = cfg.DATASET.TEST_ROOT or cfg.DATASET.ROOT
    json = cfg.DATASET.TEST_JSON or str(Path(root, 'converted_test.json'))
    return root, json, cfg.DATASET.TEST_ROOT or (root and str(Path(root, 'test')))


def _from_annotations(cfg: Config) -> TrainingData:
    dataset = cfg.DATASET
    if not dataset.ROOT and not dataset.TRAIN_JSON:
        raise UserError('no data given: --DATASET_ROOT FOLDER (one sub-folder per class), or --DATASET_TRAIN_JSON FILE')
    if dataset.ROOT and not Path(dataset.ROOT).is_dir() and not dataset.TRAIN_JSON:
        raise UserError(f'DATASET.ROOT {dataset.ROOT}: no such folder. {_where_from(cfg)}')
    train_json = dataset.TRAIN_JSON or str(Path(dataset.ROOT, 'converted_train.json'))
    if not file_exists(train_json):
        if dataset.TRAIN_JSON:
            raise UserError(f'DATASET.TRAIN_JSON {train_json}: no such file. {_where_from(cfg)}')
        return _from_class_folders(cfg)
    listed = read_annotations(train_json)
    train = annotated_split(listed, dataset.ROOT)
    valid_json = dataset.VALID_JSON or str(Path(dataset.ROOT, 'converted_val.json'))
    valid = None
    if dataset.VALID_JSON or file_exists(valid_json):
        valid = annotated_split(read_annotations(valid_json), dataset.ROOT, listed)
    classes = read_classes(Path(train_json).with_name('classes.json'), train.num_classes, train_json)
    return TrainingData(train, valid, classes)


def _from_class_folders(cfg: Config) -> TrainingData:
    root, valid_json = cfg.DATASET.ROOT, cfg.DATASET.VALID_JSON
    fraction = 0.0 if valid_json else cfg.DATASET.VALID_FRACTION
    try:
        read = read_class_folders(root, valid_fraction=fraction, seed=cfg.SEED, nested=cfg.DATASET.NESTED_CLASSES)
    except NoClassFolders:
        if cfg.DATASET.SOURCE:
            raise UserError(f'{Path(root, "converted_train.json")}: no such file. {_where_from(cfg)}') from None
        raise
    LOGGER.info('%s: %s, one per folder', root, count_of(len(read.names), 'class', 'classes'))
    if not valid_json:
        source = str(Path(root, read.valid_folder)) if read.valid_folder else f'DATASET.VALID_FRACTION {fraction:g}'
        _log_sizes(read.train.paths, read.valid.paths, source)
    splits = [
        found_split(part.paths, part.labels, len(read.names), f'{root} ({kind})', root)
        for kind, part in (('train', read.train), ('valid', read.valid))
        if part.paths
    ]
    valid = splits[1] if len(splits) > 1 else None
    if valid_json:
        valid = in_class_order(*_valid_split(cfg), read.names)
        _log_sizes(splits[0], valid, valid.source)
    return TrainingData(splits[0], valid, ClassNames(read.names, read.parents))


def _log_sizes(train: Sized, valid: Sized, source: str) -> None:
    LOGGER.info('%s for training, %d for validation (%s)', count_of(len(train), 'image'), len(valid), source)


def _from_demo(cfg: Config) -> TrainingData:
    _draw_demo(cfg)
    return _from_annotations(cfg)


def _draw_demo(cfg: Config) -> None:
    # The demo is one fixed data set: SEED changes the training, not the images.
    generate_demo(Path(cfg.DATASET.ROOT), seed=0)


def _from_cifar(cfg: Config) -> TrainingData:
    dataset = cfg.DATASET
    train_images, train_labels, valid_images, valid_labels, names = load_cifar_lt(
        dataset.ROOT,
        dataset.NAME,
        imbalance_type=dataset.IMBALANCE_TYPE,
        imbalance_ratio=dataset.IMBALANCE_RATIO,
        # The published subset is part of the data: SEED changes only the training.
        seed=cfg.SEED if dataset.IMBALANCE_IMAGES == 'by_seed' else None,
    )

    def split(images: np.ndarray, labels: np.ndarray, kind: str) -> DatasetSplit:
        rows = pa.array((f'{kind} image {row}' for row in range(len(labels))), pa.large_string())
        return DatasetSplit(ArrayImages(images), labels.astype(np.int32), len(names), rows, f'{dataset.NAME} ({kind})')

    train, valid = split(train_images, train_labels, 'train'), split(valid_images, valid_labels, 'test')
    return TrainingData(train, valid, ClassNames(list(names), []))


def _where_from(cfg: Config) -> str:
    return f'{cfg.DATASET.SOURCE}; {_FALLBACK}' if cfg.DATASET.SOURCE else f'Check the path; {_FALLBACK}'


_SOURCES: dict[str, Callable[[Config], TrainingData]] = {
    'annotations': _from_annotations,
    'demo': _from_demo,
    'cifar10_lt': _from_cifar,
    'cifar100_lt': _from_cifar,
}
