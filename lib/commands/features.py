"""The features of a split by a checkpoint: from the disk where an earlier look left them there."""

from pathlib import Path
from typing import Any

import numpy as np

from lib.builders.loader import build_eval_loader
from lib.builders.split import Split
from lib.commands.cache_key import input_key, split_key, weights_fingerprint
from lib.commands.loaded_model import LoadedModel
from lib.errors import UserError
from lib.inference.features import Features, fill_features
from lib.runtime.column_store import ColumnStore, open_or_create
from lib.runtime.log import LOGGER

FOLDER = 'features'


def split_features(trained: LoadedModel, split: Split, label: str, *, has_its_classes: bool = True) -> Features:
    """Return the features of a split, by one pass over its images or from RUN_FOLDER/features, where it leaves them.

    What the cache is of (weights of the backbone, images, input) is checked; of one checkpoint and split there is one.
    Ranks share the pass, and must share the folder.

    Args:
        label: name of the split, for the progress bar and the cache.
        has_its_classes: whether the split's labels are to be those of the model.

    Raises:
        UserError: it has no image, or its labels do not fit the model.
    """
    if not len(split):
        raise UserError(f'{split.source}: no images, so there are no features')
    if has_its_classes:
        trained.check_classes(split)
    folder = trained.folder / FOLDER / f'{trained.checkpoint.path.stem}-{label}'
    about = _about(trained, split)
    with trained.group.main_first():
        if trained.group.is_main:
            _make(folder, trained, split, about)
    store = ColumnStore(folder, writer=trained.group.rank)
    if store.is_complete:
        LOGGER.info('%s: features of the %s split as they were looked at before', folder, label)
    else:
        if not store.done.any():
            LOGGER.info('%s: keeps features, %s', folder, _size(store.columns['features'].nbytes))
        loader = build_eval_loader(trained.cfg, split, trained.device, trained.group)
        fill_features(trained.model, loader, store, label=label)
        trained.group.barrier()
    return Features(store.columns['features'], split.labels.astype(np.int64), store.columns['readable'], store.notes())


def _make(folder: Path, trained: LoadedModel, split: Split, about: dict[str, Any]) -> None:
    width = trained.model.backbone.num_features
    open_or_create(folder, len(split), {'features': (np.float32, (width,)), 'readable': (bool, ())}, about)


def _about(trained: LoadedModel, split: Split) -> dict[str, Any]:
    """Return what features depend on."""
    backbone = weights_fingerprint(trained.checkpoint.state_dict, 'backbone.')
    return {'backbone': backbone, **split_key(split), **input_key(trained)}


def _size(count: int) -> str:
    return f'{count / 1e9:.1f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB'
