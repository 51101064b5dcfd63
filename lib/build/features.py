"""The features of a split by a checkpoint: from the disk where an earlier look left them there."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.build.loader import build_eval_loader
from lib.build.split import Split
from lib.build.trained import Trained
from lib.dataset.images import FileImages
from lib.evaluation.features import Features, fill_features
from lib.runtime.log import LOGGER
from lib.runtime.row_store import RowStore, made_store

FOLDER = 'features'
_FILES_LOOKED_AT = 1000  # of a split: that photos were replaced under their names shows in sizes and times


def split_features(trained: Trained, split: Split, label: str) -> Features:
    """Return the features of a split, by one pass over its images or from RUN_FOLDER/features, where it leaves them.

    What the cache is of (weights of the backbone, images, input) is checked; of one checkpoint and split there is one.
    Ranks share the pass, and must share the folder.

    Args:
        label: name of the split, for the progress bar and the cache.

    Raises:
        UserError: its labels do not fit the model.
    """
    trained.check_classes(split)
    folder = trained.folder / FOLDER / f'{trained.checkpoint.path.stem}-{label}'
    about = _about(trained, split)
    with trained.ranks.main_first():
        if trained.ranks.is_main:
            _make(folder, trained, split, about)
    store = RowStore(folder, writer=trained.ranks.rank)
    if store.is_complete:
        LOGGER.info('%s: features of the %s split as they were looked at before', folder, label)
    else:
        loader = build_eval_loader(trained.cfg, split, trained.device, trained.ranks)
        fill_features(trained.model, loader, store, label=label)
        trained.ranks.wait()
    return Features(store.columns['features'], split.labels.astype(np.int64), store.columns['readable'], store.notes())


def _make(folder: Path, trained: Trained, split: Split, about: dict[str, Any]) -> None:
    width = trained.model.backbone.num_features
    made_store(folder, len(split), {'features': (np.float32, (width,)), 'readable': (bool, ())}, about)


def _about(trained: Trained, split: Split) -> dict[str, Any]:
    """Return what features depend on."""
    inputs = trained.cfg.INPUT
    return {
        'backbone': _weights_digest(trained.checkpoint.state_dict),
        'split': split.digest(),
        'files': _files_digest(split),
        'size': inputs.TEST_SIZE or inputs.SIZE,
        'crop_ratio': inputs.CROP_RATIO,
        'mean': inputs.MEAN,
        'std': inputs.STD,
        'color_space': trained.cfg.DATASET.COLOR_SPACE,
        'device': trained.device.describe(training=False),
    }


def _weights_digest(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if name.startswith('backbone.'):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _files_digest(split: Split) -> str:
    if not isinstance(split.images, FileImages):
        return ''
    digest = hashlib.sha256(str(Path(split.images.root).resolve()).encode())
    for row in np.linspace(0, len(split) - 1, min(len(split), _FILES_LOOKED_AT)).astype(int):
        try:
            stat = Path(split.images.name(row)).stat()
        except OSError:
            continue
        digest.update(f'{row} {stat.st_size} {stat.st_mtime_ns} '.encode())
    return digest.hexdigest()
