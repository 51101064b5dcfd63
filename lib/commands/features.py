"""The features of a split by a checkpoint: computed once, then read from the run folder."""

from typing import Any

import numpy as np

from lib.builders.cache_key import input_key, split_key, weights_fingerprint
from lib.builders.loader import build_eval_loader
from lib.builders.split import DatasetSplit
from lib.commands.loaded_model import LoadedModel
from lib.dataset.features import Features
from lib.errors import UserError
from lib.inference.forward import SingleForward
from lib.inference.run import run
from lib.inference.sinks import feature_columns, feature_store_sink
from lib.runtime.column_store import ColumnStore, open_or_create
from lib.runtime.log import LOGGER

FOLDER = 'features'


def split_features(trained: LoadedModel, split: DatasetSplit, label: str, *, same_classes: bool = True) -> Features:
    """Return the features of a split: from the cache RUN_FOLDER/features, or by one pass that fills it.

    The cache is used only for the same backbone weights, images and input options; there is one per checkpoint and
    split. Ranks share the pass, and must share the folder.

    Args:
        label: name of the split, for the progress bar and the cache.
        same_classes: whether the split's labels must be classes of the model.

    Raises:
        UserError: it has no image, or its labels do not fit the model.
    """
    if not len(split):
        raise UserError(f'{split.source}: no images, so there are no features')
    if same_classes:
        trained.check_classes(split)
    engine = trained.engine
    folder = trained.folder / FOLDER / f'{trained.stem.name}-{label}'
    with trained.group.main_first():
        if trained.group.is_main:
            open_or_create(folder, len(split), feature_columns(engine.num_features), _key(trained, split))
    store = ColumnStore(folder, writer=trained.group.rank)
    if store.is_complete:
        LOGGER.info('%s: using cached features of the %s split', folder, label)
    else:
        if not store.done.any():
            LOGGER.info('%s: caching features, %s', folder, _size(store.columns['features'].nbytes))
        loader = build_eval_loader(trained.cfg, split, trained.device, trained.group)
        run(SingleForward(engine, loader), [feature_store_sink(store)], label=label, store=store)
        trained.group.barrier()
    return Features(store.columns['features'], split.labels.astype(np.int64), store.columns['readable'], store.errors())


def _key(trained: LoadedModel, split: DatasetSplit) -> dict[str, Any]:
    """Return the values that features depend on."""
    backbone = weights_fingerprint(trained.checkpoint.state_dict, 'backbone.')
    return {'backbone': backbone, **split_key(split), **input_key(trained.cfg, trained.device)}


def _size(num_bytes: int) -> str:
    return f'{num_bytes / 1e9:.1f} GB' if num_bytes >= 1e9 else f'{num_bytes / 1e6:.1f} MB'
