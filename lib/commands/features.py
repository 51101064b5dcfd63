"""The features of a split by a checkpoint: computed once, then read from the run folder."""

from typing import Any

import numpy as np

from lib.builders.cache_key import checkpoint_fingerprint, input_key, split_key
from lib.builders.features import filled_store, stored_features
from lib.builders.loader import build_eval_loader
from lib.builders.split import DatasetSplit
from lib.commands.loaded_model import LoadedModel
from lib.dataset.features import Features
from lib.errors import UserError
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
    folder = trained.folder / FOLDER / f'{trained.stem.name}-{label}'
    store, was_complete = filled_store(
        folder,
        len(split),
        _key(trained, split),
        trained.engine,
        lambda: build_eval_loader(trained.cfg, split, trained.device, trained.group),
        label=label,
        group=trained.group,
    )
    if was_complete:
        LOGGER.info('%s: using cached features of the %s split', folder, label)
    return stored_features(store, split.labels.astype(np.int64))


def _key(trained: LoadedModel, split: DatasetSplit) -> dict[str, Any]:
    """Return the values that features depend on."""
    backbone = checkpoint_fingerprint(trained.checkpoint, 'backbone.')
    return {'backbone': backbone, **split_key(split), **input_key(trained.cfg, trained.device)}
