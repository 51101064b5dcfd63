"""A trained model out of RESUME_MODEL, with what its checkpoint knows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lib.builders.device import build_device
from lib.builders.loader import build_eval_loader
from lib.builders.model import class_names, model_of
from lib.builders.split import Split
from lib.commands.cli import Command
from lib.config.defaults import Config
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.inference.engine import EagerEngine
from lib.inference.run import BatchSink, Evaluation, evaluate
from lib.model import Recognizer
from lib.runtime.device import Device
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.state import Checkpoint


@dataclass
class LoadedModel:
    """A model ready to predict.

    Attributes:
        folder: where results go: the run folder that the checkpoint lies in, else LOG_ROOT/NAME.
        class_names: (num_classes,) names; numbers where there are none.
        train_counts: (num_classes,) original training counts; zeros where the checkpoint does not know them.
        ranks: that share the images of a split. All know the results, the main one writes.
    """

    cfg: Config
    checkpoint: Checkpoint
    model: Recognizer
    device: Device
    folder: Path
    class_names: list[str]
    train_counts: np.ndarray
    group: ProcessGroup = SINGLE_PROCESS

    @property
    def engine(self) -> EagerEngine:
        """The model as inference runs it."""
        return EagerEngine(self.model)

    @property
    def class_parents(self) -> list[list[str]]:
        """The ancestors of each class, root first; empty where the checkpoint knows none."""
        known = self.checkpoint.training_set
        return known.class_parents if known else []

    @property
    def stem(self) -> Path:
        """Results are named after the checkpoint: this path, with an ending."""
        return self.folder / self.checkpoint.path.stem

    def evaluate(self, split: Split, *, label: str, sinks: Sequence[BatchSink] = ()) -> Evaluation:
        """Run the model over a split.

        Raises:
            UserError: its labels do not fit the model.
        """
        self.check_classes(split)
        found = evaluate(
            self.engine,
            build_eval_loader(self.cfg, split, self.device, self.group),
            train_counts=self.train_counts,
            label=label,
            sinks=sinks,
            group=self.group,
        )
        return replace(found, metrics=self.known(found.metrics))

    def check_classes(self, split: Split) -> None:
        """Raise UserError where the labels of a split do not fit the model."""
        if split.num_classes != self.checkpoint.num_classes:
            raise UserError(
                f'{split.source} has num_classes {split.num_classes}, but {self.checkpoint.path} was trained on '
                f'{self.checkpoint.num_classes} classes'
            )

    def known(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return `metrics` without many, medium and few where no training counts say which classes those are."""
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
    folder = path.parent if (path.parent / 'config.yaml').exists() else Path(cfg.LOG_ROOT, cfg.NAME)
    device = build_device(cfg, group)
    model = model_of(checkpoint, cfg, device)
    LOGGER.info('%s: %d classes, %s', path, checkpoint.num_classes, device.describe(training=False))
    known = checkpoint.training_set
    counts = known.class_counts if known else np.zeros(checkpoint.num_classes, np.int64)
    return LoadedModel(cfg, checkpoint, model, device, folder, class_names(checkpoint), counts, group)
