"""Packed splits: DATASET.SHARDS, a folder that tools/pack.py wrote."""

from pathlib import Path

from lib.builders.split import DatasetSplit, TrainingData
from lib.config.defaults import Config
from lib.dataset.annotations import ClassNames
from lib.errors import UserError
from lib.runtime.log import LOGGER
from lib.shards.images import ShardImages
from lib.shards.index import INDEX, INFO, SETTINGS


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
