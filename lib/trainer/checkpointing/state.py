"""The content of a checkpoint: plain tensors, numbers and text."""

import os
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from lib.backbone.tuning import BaseWeights
from lib.errors import UserError, shown
from lib.runtime.json_file import Count, read_json_lines
from lib.runtime.text import nfc_list, whole
from lib.trainer.checkpointing.classifier_rows import CLASSIFIER_PREFIX, put_classifier_rows
from lib.trainer.checkpointing.sharded import ClassifierShard, num_classes_of, read_rows
from lib.trainer.selection import Selection

METRICS = 'metrics.jsonl'
# Epoch, split, learning rate and metrics.
MetricsEntry = dict[str, int | float | str]


class TrainProgress(msgspec.Struct, forbid_unknown_fields=True):
    """Position of a run: finished epochs, steps of the current one, and the running sums over those steps.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the current epoch; all of them while its validation is still to come.
        loss_sum, num_right, num_images, seconds: running sums over those steps.
    """

    epoch: Count = 0
    step: Count = 0
    loss_sum: float = 0.0
    num_right: Count = 0
    num_images: Count = 0
    seconds: float = 0.0

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and step; of two positions in a run, the larger one is later."""
        return self.epoch, self.step

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch += 1
        self.step, self.loss_sum, self.num_right, self.num_images, self.seconds = 0, 0.0, 0, 0, 0.0


@dataclass
class TrainingSet:
    """Identity and classes of the images that a model was trained on.

    Attributes:
        digest: fingerprint of paths and labels; two sets are the same if their digests are.
        class_counts: (num_classes,) int64 images per class in the original training set once its labels are corrected,
            before any cap.
        class_names, class_parents: as in classes.json, in NFC also where the file has another form; empty when unknown.
        corrections: {'train' or 'valid': {'file': path of the decisions, 'digest': their SHA-256, 'counts': images by
            action, 'classes': [[name, images that left it, images that came in], ...] of the most changed ones}}.
    """

    digest: str
    class_counts: np.ndarray
    class_names: list[str] = field(default_factory=list)
    class_parents: list[list[str]] = field(default_factory=list)
    corrections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.class_names = nfc_list(self.class_names)
        self.class_parents = [nfc_list(ancestors) for ancestors in self.class_parents]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_counts)


@dataclass
class Checkpoint:
    """Everything that resuming and prediction need; `for_prediction` leaves out what only resuming needs.

    Attributes:
        state_dict: parameters and buffers by name (`backbone.*`, `classifier.*`), without any `module.` prefix; the
            weights used for prediction, which with TRAIN.EMA_DECAY are the EMA.
        config: config of the run as YAML; '' in checkpoints of the original entry.
        recipe: config keys that determine the weights, to compare two runs.
        progress, training_set: None in checkpoints of the original entry.
        selection: the best and the selected epoch until now.
        optimizer: state of the optimizer; None in files that cannot be resumed.
        training_state: the weights being trained where state_dict is their EMA; else None.
        scaler: state of the loss scaler; None without one.
        history: the objects of metrics.jsonl; None in older checkpoints.
        bad_images: undecodable images, {split: {name: reason}}; None in older checkpoints.
        step_format: precision, memory_format and kind of device of the training steps; None in older checkpoints.
        rng, versions: state of torch's generator and versions() when the snapshot was taken; None: when it is written.
        base: where the weights are that state_dict lacks, those of the base of a tuned backbone; None: it lacks none.
        samples: state of the record of the training images (lib.trainer.samples); None without one.
        classifier_shard: classifier rows of this rank, removed from the other fields and written separately.
        shard_folder: folder with the classifier rows of all ranks, if they have not been read yet.
        path: file that the checkpoint was read from.
    """

    state_dict: dict[str, torch.Tensor]
    config: str = ''
    recipe: dict[str, Any] = field(default_factory=dict)
    progress: TrainProgress | None = None
    training_set: TrainingSet | None = None
    selection: Selection = field(default_factory=Selection)
    optimizer: dict[str, Any] | None = None
    training_state: dict[str, torch.Tensor] | None = None
    scaler: dict[str, Any] | None = None
    history: list[dict[str, Any]] | None = None
    bad_images: dict[str, dict[str, str]] | None = None
    step_format: dict[str, str] | None = None
    rng: torch.Tensor | None = None
    versions: dict[str, str] | None = None
    base: BaseWeights | None = None
    samples: dict[str, torch.Tensor] | None = None
    classifier_shard: ClassifierShard | None = None
    shard_folder: Path | None = None
    path: Path | None = None

    @property
    def is_sharded(self) -> bool:
        """Return whether the classifier rows are in separate files."""
        return self.classifier_shard is not None or self.shard_folder is not None

    @property
    def is_resumable(self) -> bool:
        """Return whether the checkpoint holds the state of the training, not only what prediction needs."""
        return self.progress is not None and self.training_set is not None and self.optimizer is not None

    def for_prediction(self) -> 'Checkpoint':
        """Return the weights used for prediction, with config, classes and epoch: the content of best_model.pth."""
        return replace(
            self,
            selection=replace(self.selection, best_scores=None),
            optimizer=None,
            training_state=None,
            scaler=None,
            history=None,
            bad_images=None,
            samples=None,
        )

    @property
    def num_classes(self) -> int:
        """Number of rows of the classifier's weight."""
        if self.classifier_shard is not None:
            return self.classifier_shard.num_classes
        if self.shard_folder is not None:
            return num_classes_of(self.shard_folder)
        return self.state_dict['classifier.weight'].shape[0]

    def with_rows(self, classes: range | None = None) -> 'Checkpoint':
        """Return the checkpoint with the classifier rows of `classes` (None: all), sharded or not.

        The optimizer state of a classifier that was written whole stays whole.

        Raises:
            UserError: the rows cannot be read.
        """
        if self.shard_folder is not None:
            rows = read_rows(self.shard_folder, classes)
            if self.training_set is not None and self.training_set.num_classes != self.num_classes:
                counts = f'{self.training_set.num_classes} class counts for {self.num_classes} classes'
                raise UserError(f'{self.path}: cannot be read as a checkpoint ({counts})')
            state, training, optimizer = put_classifier_rows(self.state_dict, self.training_state, self.optimizer, rows)
            return replace(self, state_dict=state, training_state=training, optimizer=optimizer, shard_folder=None)
        if classes is None:
            return self
        training = None if self.training_state is None else _select_rows(self.training_state, classes)
        return replace(self, state_dict=_select_rows(self.state_dict, classes), training_state=training)


def _select_rows(state: dict[str, torch.Tensor], classes: range) -> dict[str, torch.Tensor]:
    rows = slice(classes.start, classes.stop)
    return {name: tensor[rows] if name.startswith(CLASSIFIER_PREFIX) else tensor for name, tensor in state.items()}


def shard_folder_name(progress: TrainProgress) -> str:
    """Return the name of the folder, beside the checkpoint, that holds the classifier rows of a position."""
    return f'head-{progress.epoch}-{progress.step}'


def versions() -> dict[str, str]:
    """Return the versions that results may depend on."""
    import torchvision  # imported here: it takes seconds, and timm has imported it where a model was built

    return {
        'python': platform.python_version(),
        'torch': str(torch.__version__),
        'torchvision': str(torchvision.__version__),
        'numpy': np.__version__,
        'system': platform.platform(),
        'threads': str(torch.get_num_threads()),
        'cpus': str(os.cpu_count()),
    }


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of metrics.jsonl in a run folder, without a last line that a crash truncated.

    Raises:
        UserError: a line has another form.
    """
    entries = read_json_lines(folder / METRICS, MetricsEntry)
    if fault := history_fault(entries):
        raise UserError(f'{folder / METRICS}: {fault}')
    return entries


def history_fault(entries: list[MetricsEntry]) -> str:
    """Return why these are no objects of metrics.jsonl; '' if they are."""
    for position, entry in enumerate(entries, 1):
        epoch = whole(entry.get('epoch'))
        if epoch is None or epoch < 0 or not isinstance(entry.get('split', ''), str):
            return f'entry {position} has no epoch, or no text as split'
        texts = [name for name, value in entry.items() if isinstance(value, str) and name != 'split']
        if texts:
            return f'entry {position} has a text as {shown(texts[0])}'
    return ''
