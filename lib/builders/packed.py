"""DATASET.SHARDS in the config -> the splits that tools/pack.py wrote."""

from pathlib import Path

from yacs.config import CfgNode

from lib.builders.split import Split, TrainingData
from lib.dataset.annotations import ClassNames
from lib.errors import UserError
from lib.runtime.log import LOGGER
from lib.shards.images import ShardImages
from lib.shards.index import INDEX


def open_packed(cfg: CfgNode) -> TrainingData:
    """Open the packed training and validation splits. Raises: UserError."""
    if not Path(cfg.DATASET.SHARDS).is_dir():
        raise UserError(
            f'DATASET.SHARDS {cfg.DATASET.SHARDS}: no such folder; python tools/pack.py --PACK_OUT '
            f'{cfg.DATASET.SHARDS} packs into it'
        )
    train, classes = packed_split(cfg, 'train')
    return TrainingData(train, packed_split(cfg, 'valid')[0] if is_packed(cfg, 'valid') else None, classes)


def is_packed(cfg: CfgNode, kind: str) -> bool:
    """Return whether DATASET.SHARDS holds the split `kind`: train, valid or test."""
    return bool(cfg.DATASET.SHARDS) and Path(cfg.DATASET.SHARDS, kind).is_dir()


def packed_split(cfg: CfgNode, kind: str) -> tuple[Split, ClassNames | None]:
    """Open `kind` (train, valid, test) of DATASET.SHARDS, and the classes' names. Raises: UserError."""
    folder = Path(cfg.DATASET.SHARDS, kind)
    images = ShardImages(folder / INDEX)
    index, contents = images.index, images.index.contents
    LOGGER.info('%s: %d packed images (DATASET.SHARDS)', folder, len(images))
    for warning in index.check():
        LOGGER.warning('%s', warning)
    split = Split(images, index.labels, contents.num_classes, index.names, str(folder))
    return split, None if contents.class_names is None else ClassNames(contents.class_names, contents.parents)
