"""A trained model, loaded from its checkpoint for evaluation and prediction, and its features of a split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.builders.cache_key import checkpoint_fingerprint, input_key, model_version, split_key
from lib.builders.calibration import calibration_pixels
from lib.builders.data import open_training_data, open_valid_split
from lib.builders.device import build_device
from lib.builders.engine import build_engine
from lib.builders.features import filled_store, stored_features
from lib.builders.loader import build_eval_loader, build_normalize, plain_view
from lib.builders.model import class_names, model_of
from lib.builders.split import DatasetSplit, some_of
from lib.commands.command import Command
from lib.config.defaults import Config
from lib.config.load import merge_checkpoint_config
from lib.dataset.features import Features
from lib.dataset.index import ranks_in_classes
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.inference.engine import EagerEngine
from lib.inference.run import BatchSink, Evaluation, classify_features, evaluate
from lib.metrics.precision_cost import precision_cost
from lib.model import FEATURE_PREFIXES, Recognizer
from lib.runtime.device import Device
from lib.runtime.log import LOGGER
from lib.runtime.text import count_of
from lib.runtime.uploads import refresh
from lib.trainer.checkpointing.io import read_checkpoint
from lib.trainer.checkpointing.state import Checkpoint

FEATURES = 'features'


@dataclass
class LoadedModel:
    """A trained model with its config and classes.

    Attributes:
        checkpoint: with all classifier rows.
        folder: for results: the run folder that contains the checkpoint, or LOG_ROOT/NAME.
        class_names: (num_classes,) names; numbers if the checkpoint has none.
        train_counts: (num_classes,) original training counts; zeros if the checkpoint has none.
        group: ranks that share the images of a split. All get the results, the main rank writes them.
    """

    cfg: Config
    checkpoint: Checkpoint
    model: Recognizer
    device: Device
    folder: Path
    class_names: list[str]
    train_counts: np.ndarray
    group: ProcessGroup = SINGLE_PROCESS
    _is_cost_known: bool = field(default=False, init=False, repr=False)

    @cached_property
    def valid(self) -> DatasetSplit:
        """The validation split, which is opened once: class folders on a network disk take minutes."""
        return open_valid_split(self.cfg, self.class_names)

    @property
    def engine(self) -> EagerEngine:
        """The engine of stored features; for images, see `engine_for`."""
        return EagerEngine(self.model)

    def engine_for(self, num_images: int) -> EagerEngine:
        """Return the engine of a pass over images; the cost of a precision below float32 is logged before. Collective.

        Raises:
            UserError: RUN.ENGINE is not installed, or does not fit the precision or the device.
        """
        precision = self.cfg.RUN.ENGINE_PRECISION
        engine = _engine_in(self, precision, num_images)
        if precision != 'float32' and not self._is_cost_known:
            self._is_cost_known = True
            _log_cost(self, precision)
        return engine

    @cached_property
    def features_fingerprint(self) -> str:
        """Fingerprint of the weights that features depend on, see FEATURE_PREFIXES."""
        return checkpoint_fingerprint(self.checkpoint, FEATURE_PREFIXES)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of all weights."""
        return checkpoint_fingerprint(self.checkpoint)

    @property
    def version(self) -> str:
        """Short fingerprint of weights, preprocessing and class names, see `model_version`."""
        return model_version(self.cfg, self.fingerprint, self.class_names)

    @property
    def class_parents(self) -> list[list[str]]:
        """Ancestors of each class, root first; empty if the checkpoint has none."""
        training_set = self.checkpoint.training_set
        return training_set.class_parents if training_set else []

    @property
    def path(self) -> Path:
        """File of the checkpoint."""
        assert self.checkpoint.path is not None
        return self.checkpoint.path

    @property
    def stem(self) -> Path:
        """Path of results without suffix: the folder, and the name of the checkpoint."""
        return self.folder / self.path.stem

    def evaluate(self, split: DatasetSplit, *, label: str, sinks: Sequence[BatchSink] = ()) -> Evaluation:
        """Predict the images of a split and compute the metrics.

        Raises:
            UserError: the split has another number of classes than the model.
        """
        self.check_classes(split)
        evaluation = evaluate(
            self.engine_for(len(split)),
            build_eval_loader(self.cfg, split, self.device, self.group),
            train_counts=self.train_counts,
            label=label,
            sinks=sinks,
            group=self.group,
        )
        return replace(evaluation, metrics=self.supported_metrics(evaluation.metrics))

    def for_prediction(self) -> Checkpoint:
        """Return the checkpoint without the state that only resuming its training needs."""
        return replace(self.checkpoint.for_prediction(), rng=None, versions=None)

    def check_classes(self, split: DatasetSplit) -> None:
        """Raise UserError if a split has another number of classes than the model."""
        if split.num_classes != self.checkpoint.num_classes:
            raise UserError(
                f'{split.source} has num_classes {split.num_classes}, but {self.path} was trained on '
                f'{self.checkpoint.num_classes} classes'
            )

    def supported_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return `metrics`, without many, medium and few if the checkpoint has no training counts."""
        groups = () if self.checkpoint.training_set else ('many', 'medium', 'few')
        return {name: value for name, value in metrics.items() if name not in groups}


def load_model(command: Command, group: ProcessGroup = SINGLE_PROCESS) -> LoadedModel:
    """Load the model of a command's checkpoint, on every rank.

    Raises:
        UserError: the checkpoint does not fit the config, or classifier rows are missing.
    """
    cfg = command.cfg
    if command.checkpoint is None or command.checkpoint.path is None:
        raise ValueError('the command has no checkpoint: call read_command with needs_model')
    checkpoint, path = command.checkpoint.with_rows(), command.checkpoint.path
    refresh(path.parent, without=('',))
    folder = path.parent if (path.parent / 'config.yaml').exists() else Path(cfg.LOG_ROOT, cfg.NAME)
    device = build_device(cfg, group)
    size = cfg.INPUT.TEST_SIZE or cfg.INPUT.SIZE
    model = model_of(checkpoint, cfg, device, image_size=size, shares_memory=True)
    classes = count_of(checkpoint.num_classes, 'class', 'classes')
    LOGGER.info('%s: %s, %s', path, classes, device.describe(training=False))
    training_set = checkpoint.training_set
    counts = training_set.class_counts if training_set else np.zeros(checkpoint.num_classes, np.int64)
    return LoadedModel(cfg, checkpoint, model, device, folder, class_names(checkpoint), counts, group)


def load_another(path: str, option: str, options: Mapping[str, Any], group: ProcessGroup) -> LoadedModel:
    """Load a further model of a command, with the config in its checkpoint and `options` over it.

    Args:
        option: option that names the path, for error messages.
        options: flat keys, such as {'TEST.BATCH_SIZE': 8}.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    checkpoint = read_checkpoint(path, with_rows=False, option=option)
    return load_model(Command(merge_checkpoint_config(checkpoint.config, path, options), checkpoint), group)


def split_features(
    trained: LoadedModel, split: DatasetSplit, label: str, *, same_classes: bool = True, precision: str = ''
) -> Features:
    """Return the features of a split: from the cache RUN_FOLDER/features, or by one pass that fills it.

    The cache is used only for the same backbone weights, images and input options; there is one per checkpoint and
    split. Ranks share the pass, and must share the folder.

    Args:
        label: name of the split, for the progress bar and the cache.
        same_classes: whether the split's labels must be classes of the model.
        precision: precision of the features; default: RUN.ENGINE_PRECISION, whose cost is logged.

    Raises:
        UserError: it has no image, or its labels do not fit the model.
    """
    if not len(split):
        raise UserError(f'{split.source}: no images, so there are no features')
    if same_classes:
        trained.check_classes(split)
    engine = _engine_in(trained, precision, len(split)) if precision else trained.engine_for(len(split))
    precision = precision or trained.cfg.RUN.ENGINE_PRECISION
    suffix = '' if precision == 'float32' else f'-{precision}'
    folder = trained.folder / FEATURES / f'{trained.stem.name}-{label}{suffix}'
    store, was_complete = filled_store(
        folder,
        len(split),
        _key(trained, split, precision) if trained.group.is_main else {},
        engine,
        lambda: build_eval_loader(trained.cfg, split, trained.device, trained.group, whole_batches=True),
        label=label,
        group=trained.group,
    )
    if was_complete:
        LOGGER.info('%s: using cached features of the %s split', folder, label)
    return stored_features(store, split.labels.astype(np.int64))


def training_sample(trained: LoadedModel) -> DatasetSplit:
    """Return at most POSTHOC.HOLDOUT training images per class, drawn by SEED from those that are not in quarantine.

    Raises:
        UserError: there are no training images, or they have other classes than the model.
    """
    cfg = trained.cfg
    data = open_training_data(cfg).in_class_order(trained.class_names)
    train = data.train
    trained.check_classes(train)
    order = np.random.default_rng(cfg.SEED).permutation(len(train))
    if data.train_rows is not None:
        order = order[np.isin(order, data.train_rows)]
    return some_of(train, np.sort(order[ranks_in_classes(train.labels[order]) < cfg.POSTHOC.HOLDOUT]))


def _key(trained: LoadedModel, split: DatasetSplit, precision: str) -> dict[str, Any]:
    """Return the values that features depend on."""
    inputs = input_key(trained.cfg, trained.device, precision)
    return {'backbone': trained.features_fingerprint, **split_key(split, with_labels=False), **inputs}


def _engine_in(trained: LoadedModel, precision: str, num_images: int) -> EagerEngine:
    """Return the engine of a pass over images in a precision."""

    def calibration(size: int) -> list[torch.Tensor]:
        view = replace(plain_view(trained.cfg), size=size)
        pixels, source = calibration_pixels(trained.cfg, trained.class_names, view)
        LOGGER.info('int8: calibrated on %d %s', len(pixels), source)
        return [build_normalize(trained.cfg, trained.device)(pixels)]

    return build_engine(
        trained.cfg,
        trained.model,
        trained.device,
        trained.group,
        num_images=num_images,
        folder=trained.folder,
        precision=precision,
        calibration=calibration,
        fingerprint=lambda: trained.features_fingerprint,
    )


def _log_cost(trained: LoadedModel, precision: str) -> None:
    """Log what a precision below float32 costs on the validation split, whose features in both are cached."""
    try:
        valid = trained.valid  # not by the main rank first, which would leave the others behind at an error
        if not (valid.labels >= 0).any():
            raise UserError(f'{valid.source}: its images have no labels')
        before, after = (
            classify_features(trained.engine, split_features(trained, valid, 'valid', precision=one))
            for one in ('float32', precision)
        )
    except UserError as error:
        LOGGER.warning('the cost of %s is unknown: %s', precision, error)
        return
    for line in precision_cost(before, after, trained.train_counts).lines(precision):
        LOGGER.info('%s', line)
