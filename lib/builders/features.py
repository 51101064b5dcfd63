"""TRAIN.FEATURES cached: the features of all images, computed once for the runs that share backbone and images."""

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.backbone.create import num_features_of
from lib.builders.cache_key import pixel_key, split_key, weights_fingerprint
from lib.builders.engine import build_engine
from lib.builders.loader import TRAIN_TRANSFORMS, build_augment, build_eval_loader, plain_view
from lib.builders.model import model_at_test_size
from lib.builders.split import DatasetSplit
from lib.builders.training_data import TrainingData
from lib.classifier.linear import LinearClassifier
from lib.config.defaults import Config
from lib.dataset.features import Features
from lib.dataset.loader import EvalLoader
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError
from lib.inference.engine import Engine
from lib.inference.forward import SingleForward
from lib.inference.run import run
from lib.inference.sinks import FeatureOverflow, feature_columns, feature_store_sink
from lib.model import Recognizer
from lib.runtime.column_store import ColumnStore, open_complete, open_or_create
from lib.runtime.device import Device
from lib.runtime.locks import file_lock
from lib.runtime.log import LOGGER, duration_text
from lib.runtime.read_file import reason_of
from lib.runtime.text import count_of, size_text

_SECONDS_BETWEEN_TRIES = 1.0


@dataclass(frozen=True)
class CachedFeatures:
    """The outputs of the backbone that a run trains on.

    Attributes:
        train: features of the training split, all rows, once per view.
        valid: features of the validation split; None without one.
    """

    train: Sequence[Features]
    valid: Features | None


NO_FEATURES = CachedFeatures((), None)


def cached_features(
    cfg: Config, data: TrainingData, model: Recognizer, device: Device, group: ProcessGroup
) -> CachedFeatures:
    """Return the features of all images: from TRAIN.FEATURE_CACHE, or by passes that fill it. Ranks share the passes.

    View v of a training image has the crop and augmentation of epoch v with the row as slot. A pass that is interrupted
    is resumed by the next run that needs the same features; one that needs them meanwhile waits.

    Raises:
        UserError: too little space; features that exceed float16.
    """
    num_views, cache = cfg.TRAIN.FEATURE_VIEWS, _Cache(cfg, model, device, group)
    engine = cache.engine(model, len(data.train))
    of_train, train = cache.of_split(data.train), []
    for view in range(num_views):
        name = f'train, view {view + 1} of {num_views}' if num_views > 1 else 'train'
        loader = partial(build_eval_loader, cfg, data.train, device, group, train_view=view, whole_batches=True)
        train.append(of_train(engine, loader, name, f'train-view-{view + 1}', _train_view(cfg, view)))
    if data.valid is None:
        return CachedFeatures(train, None)
    return CachedFeatures(train, _plain(cfg, data.valid, cache, model, 'valid', 'valid'))


def plain_train_features(
    cfg: Config, split: DatasetSplit, model: Recognizer, device: Device, group: ProcessGroup
) -> Features:
    """Return the features of training images under the view of validation, from the same cache.

    They are those of `cached_features` if training images are cropped in the same way and not augmented.

    Raises:
        UserError: as cached_features.
    """
    return _plain(cfg, split, _Cache(cfg, model, device, group), model, 'train', 'train-view-1')


def _plain(cfg: Config, split: DatasetSplit, cache: '_Cache', model: Recognizer, name: str, prefix: str) -> Features:
    resampled = model_at_test_size(cfg, cache.device)
    engine = cache.engine(model if resampled is None else resampled(model), len(split))
    loader = partial(build_eval_loader, cfg, split, cache.device, cache.group, whole_batches=True)
    return cache.of_split(split)(engine, loader, name, prefix, str(plain_view(cfg)))


def _train_view(cfg: Config, view: int) -> str:
    """Return all that is done to the training images of a view, including the random numbers, as text."""
    transform, augment = TRAIN_TRANSFORMS[cfg.INPUT.TRAIN_TRANSFORM](cfg.INPUT), build_augment(cfg)
    if augment is None:
        return f'{transform}, seed {cfg.SEED}, view {view}' if transform.num_draws else str(transform)
    return f'{transform}, {augment}, seed {cfg.SEED}, view {view}'


class _Cache:
    """TRAIN.FEATURE_CACHE: a folder for each split and view, named after all that its features depend on."""

    def __init__(self, cfg: Config, model: Recognizer, device: Device, group: ProcessGroup) -> None:
        self._root = Path(cfg.TRAIN.FEATURE_CACHE or Path(cfg.LOG_ROOT, 'features'))
        self._cfg, self._dtype, self.device, self.group = cfg, cfg.TRAIN.FEATURE_DTYPE, device, group
        is_cuda = device.main.type == 'cuda'
        self._key = {
            **pixel_key(cfg, device),
            'backbone': weights_fingerprint(model.backbone.state_dict()) if group.is_main else '',
            'name': cfg.MODEL.BACKBONE,
            'cache': cfg.DATASET.CACHE,
            # Without the number of the GPU: features are shared by GPUs of one kind.
            'device': torch.cuda.get_device_name(device.main) if is_cuda else device.main.type,
            'precision': str(device.eval_dtype),
        }

    def engine(self, model: Recognizer, num_images: int) -> Engine:
        """Return the engine for a pass over images; its graphs are in LOG_ROOT, as the runs share them.

        Its features are the outputs of the backbone: an embedding is trained on them.
        """
        folder = Path(self._cfg.LOG_ROOT)
        if model.embedding is not None:
            unused, dtype = LinearClassifier(num_features_of(model.backbone), 1), model.eval_dtype
            model = Recognizer(model.backbone, unused.to(self.device.main), eval_dtype=dtype).eval()
        return build_engine(
            self._cfg, model, self.device, self.group, num_images=num_images, folder=folder, is_training=True
        )

    def of_split(self, split: DatasetSplit) -> Callable[[Engine, Callable[[], EvalLoader], str, str, str], Features]:
        """Return a function that returns the features of the images under a view.

        Its arguments are those of `filled_store`: engine and loader; the name of split and view in the log, and at the
        start of the folder's name; and all that is done to the images.
        """
        key = {**self._key, **(split_key(split, with_labels=False) if self.group.is_main else {})}
        labels = split.labels.astype(np.int64)

        def features(engine: Engine, loader: Callable[[], EvalLoader], name: str, prefix: str, view: str) -> Features:
            started = time.perf_counter()
            whole_key = {**key, 'view': view, 'dtype': self._dtype}
            digest = hashlib.sha256(json.dumps(whole_key, sort_keys=True).encode()).hexdigest()[:16]
            folder = self._root / f'{prefix}-{self.group.broadcast_object(digest)}'
            try:
                store, was_complete = filled_store(
                    folder, len(split), whole_key, engine, loader, label=name, dtype=self._dtype, group=self.group
                )
            except FeatureOverflow as error:
                raise UserError(f'{error}: --TRAIN_FEATURE_DTYPE float32') from None
            LOGGER.info(
                'features of %s: %s x %d, %s, %s',
                name,
                count_of(len(split), 'image'),
                engine.num_features,
                size_text(store.columns['features'].nbytes),
                'cached' if was_complete else f'computed in {duration_text(time.perf_counter() - started)}',
            )
            return stored_features(store, labels)

        return features


def filled_store(
    folder: Path,
    num_images: int,
    key: Mapping[str, Any],
    engine: Engine,
    loader: Callable[[], EvalLoader],
    *,
    label: str,
    dtype: str = 'float32',
    group: ProcessGroup,
) -> tuple[ColumnStore, bool]:
    """Return the store of features in `folder`, and whether it was complete; else a pass over the split completes it.

    Ranks share the pass, and must share the folder. Processes of other runs wait until the pass is over. A complete
    store is only read, so it may be in a folder that cannot be written; rows that are damaged are computed again.

    Args:
        key: all that the features depend on; on the main rank.
        loader: called if there are features to compute.
        label: name of the split on the progress bar.

    Raises:
        UserError: the disk has too little space for the features, or the folder cannot be written.
        FeatureOverflow: features exceed float16.
    """
    columns = feature_columns(engine.num_features, dtype)
    complete = open_complete(folder, num_images, columns, key) if group.is_main else None
    done = group.broadcast_object(None if complete is None else complete.done)
    if done is not None:
        return ColumnStore(folder, done=done), True
    with locked_store(folder, group):
        with group.main_first():
            if group.is_main:
                _check_space(folder, num_images * np.dtype(dtype).itemsize * engine.num_features)
                done = open_or_create(folder, num_images, columns, key).done
        store = ColumnStore(folder, writer=group.rank, done=group.broadcast_object(done))
        was_complete = store.is_complete
        if not was_complete:
            if not store.done.any():
                LOGGER.info('%s: caching features, %s', folder, size_text(store.columns['features'].nbytes))
            run(SingleForward(engine, loader()), [feature_store_sink(store)], label=label, store=store)
            group.barrier()
    return store, was_complete


def stored_features(store: ColumnStore, labels: np.ndarray) -> Features:
    """Return the features in a complete store; labels (n,) int64."""
    return Features(store.columns['features'], labels, np.array(store.columns['readable']), store.errors())


@contextmanager
def locked_store(folder: Path, group: ProcessGroup) -> Iterator[None]:
    """Keep processes of other runs from writing into `folder` within the block."""
    is_waiting = False
    with _lock_beside(folder) as acquire:
        while not group.broadcast_object(group.is_main and acquire()):
            if not is_waiting:
                LOGGER.info('%s: waiting for another process that computes it', folder)
            is_waiting = True
            time.sleep(_SECONDS_BETWEEN_TRIES)
        yield


@contextmanager
def _lock_beside(folder: Path) -> Iterator[Callable[[], bool]]:
    with ExitStack() as stack:
        try:
            acquire = stack.enter_context(file_lock(folder.with_name(f'.{folder.name}.lock')))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise UserError(
                f'{folder}: is missing or incomplete, and its folder cannot be written ({reason_of(error)}); for '
                'features that are trained on, --TRAIN_FEATURE_CACHE FOLDER names another'
            ) from None
        yield acquire


def _check_space(folder: Path, num_bytes: int) -> None:
    """Raise UserError if a new store does not fit."""
    if folder.exists():
        return
    free = shutil.disk_usage(folder.parent).free
    if num_bytes > free:
        raise UserError(
            f'{folder}: features take {size_text(num_bytes)}, but the disk has {size_text(free)} free; '
            '--TRAIN_FEATURE_CACHE FOLDER puts them elsewhere'
        )
