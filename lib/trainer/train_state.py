"""The state of a training run: everything that steps change, that checkpoints hold and that a resumed run restores."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lib.distributed.fully_sharded import FullySharded, local_tensor
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError
from lib.model import Recognizer
from lib.optim.ema import ModelEMA
from lib.trainer.checkpointing.classifier_rows import CLASSIFIER_PREFIX, names_by_index, take_classifier_rows
from lib.trainer.checkpointing.sharded import ClassifierShard
from lib.trainer.checkpointing.state import Checkpoint, TrainingSet, TrainProgress
from lib.trainer.run_folder import RunFolder
from lib.trainer.samples import SampleRecord
from lib.trainer.selection import Selection


class OptimizerMismatch(UserError):
    """The optimizer state in a checkpoint is of another optimizer or of other parameters."""


@dataclass(frozen=True)
class RunInfo:
    """Constants of a run that every checkpoint holds.

    Attributes:
        config: config as YAML.
        recipe: config keys that determine the weights.
        training_set: identity and classes of the training images.
        step_format: precision and memory format of the steps, and the kind of the device.
        hyper_parameters: those of interest beside the metrics of other runs.
    """

    config: str
    recipe: dict[str, Any]
    training_set: TrainingSet
    step_format: dict[str, str] = field(default_factory=dict)
    hyper_parameters: dict[str, bool | float | str] = field(default_factory=dict)


@dataclass
class TrainState:
    """Model, optimizer, EMA, loss scaler and progress of a run.

    Attributes:
        model: parameters and buffers.
        optimizer: optimizer of the model's parameters.
        ema: moving average of the weights, used for evaluation; None: off.
        scaler: loss scaler for float16 gradients; None: off.
        progress: epoch, step and running sums.
        selection: the best and the selected epoch so far.
        samples: record of the training images; None: off.
        sharded: the backbone, of whose parameters the ranks hold different rows; None: all hold the whole backbone.
    """

    model: Recognizer
    optimizer: torch.optim.Optimizer
    ema: ModelEMA | None = None
    scaler: torch.amp.GradScaler | None = None
    progress: TrainProgress = field(default_factory=TrainProgress)
    selection: Selection = field(default_factory=Selection)
    samples: SampleRecord | None = None
    sharded: FullySharded | None = None

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def unsharded(self) -> AbstractContextManager[None]:
        """Return a context in which this rank computes features without the other ranks."""
        return nullcontext() if self.sharded is None else self.sharded.unsharded()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load weights, optimizer, EMA, scaler, progress and selection of a checkpoint.

        If the checkpoint has no EMA, the EMA starts from the weights.

        Raises:
            OptimizerMismatch: the optimizer state does not fit.
        """
        if checkpoint.progress is None or checkpoint.optimizer is None:
            raise ValueError(f'{checkpoint.path} holds weights only')
        # The checkpoint lacks the weights of its base; the model has them.
        base = {} if checkpoint.base is None else self.model.state_dict()
        self._load_weights(base | (checkpoint.training_state or checkpoint.state_dict))
        if self.ema is not None:
            average = base | checkpoint.state_dict
            self.ema.load_state_dict(average if self.sharded is None else self.sharded.local(average))
        if self.scaler is not None and checkpoint.scaler:
            self.scaler.load_state_dict(checkpoint.scaler)
        optimizer_state = checkpoint.optimizer
        if self.model.is_sharded or self.sharded is not None:
            optimizer_state = self._rows_of_this_rank(optimizer_state)
        try:
            self.optimizer.load_state_dict(optimizer_state)
        except (KeyError, ValueError, TypeError, AttributeError):  # whichever difference torch's optimizers find first
            raise OptimizerMismatch(f'{checkpoint.path}: its optimizer state does not fit') from None
        self.progress, self.selection = checkpoint.progress, checkpoint.selection
        if self.samples is not None:
            self.samples.load_state_dict(checkpoint.samples, checkpoint.path)

    def to_checkpoint(self, info: RunInfo, folder: RunFolder, group: ProcessGroup) -> Checkpoint:
        """Return a checkpoint that shares memory with the state.

        It holds this rank's rows of a sharded classifier. All ranks gather a sharded backbone, and the
        checkpoint of the main rank holds all its parameters.
        """
        constant = self.model.constant_names() if self.model.base else set()
        weights = self._whole(_without(constant, self.model.state_dict()))
        whole = Checkpoint(
            state_dict=weights if self.ema is None else self._whole(_without(constant, self.ema.state_dict())),
            config=info.config,
            recipe=info.recipe,
            progress=self.progress,
            training_set=info.training_set,
            selection=self.selection,
            optimizer=self._whole_optimizer(),
            training_state=None if self.ema is None else weights,
            scaler=None if self.scaler is None else self.scaler.state_dict(),
            history=folder.history(),
            bad_images=folder.bad_images(),
            step_format=info.step_format or None,
            base=self.model.base,
            samples=None if self.samples is None else self.samples.state_dict(),
        )
        return self._split_classifier(whole, group) if self.model.is_sharded else whole

    @torch.no_grad()
    def _load_weights(self, state: dict[str, torch.Tensor]) -> None:
        if self.sharded is None:
            self.model.load_state_dict(state)
            return
        state = self.sharded.local(state)
        for name, value in self.model.state_dict().items():
            local_tensor(value).copy_(state[name])

    def _whole(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return state if self.sharded is None else self.sharded.whole(state)

    def _whole_optimizer(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        if self.sharded is None:
            return state
        return self.sharded.whole_optimizer(state, names_by_index(self.optimizer, self.sharded.rows.items()))

    def _split_classifier(self, checkpoint: Checkpoint, group: ProcessGroup) -> Checkpoint:
        """Move this rank's classifier rows into a shard; other ranks than the main one write nothing else."""
        classifier = self.model.classifier
        named = ((f'{CLASSIFIER_PREFIX}{name}', parameter) for name, parameter in classifier.named_parameters())
        assert checkpoint.optimizer is not None
        state, training, optimizer, rows = take_classifier_rows(
            checkpoint.state_dict,
            checkpoint.training_state,
            checkpoint.optimizer,
            names_by_index(self.optimizer, named),
        )
        shard = ClassifierShard(rows, classifier.classes, classifier.num_classes, group.rank, group.world_size)
        if not group.is_main:
            return Checkpoint({}, progress=checkpoint.progress, classifier_shard=shard)
        return replace(
            checkpoint, state_dict=state, training_state=training, optimizer=optimizer, classifier_shard=shard
        )

    def _rows_of_this_rank(self, optimizer_state: dict[str, Any]) -> dict[str, Any]:
        """Return the optimizer state with this rank's rows of parameters that were written whole."""
        states, sliced = dict(optimizer_state['state']), dict[int, tuple[slice, int]]()
        if self.model.is_sharded:
            classifier = self.model.classifier
            rows = slice(classifier.classes.start, classifier.classes.stop), classifier.num_classes
            sliced |= dict.fromkeys(names_by_index(self.optimizer, classifier.named_parameters()), rows)
        if self.sharded is not None:
            indices = names_by_index(self.optimizer, self.sharded.rows.items())
            sliced |= {index: self.sharded.slice_of(name) for index, name in indices.items()}
        for index, (rows_of_rank, length) in sliced.items():
            states[index] = {
                key: value[rows_of_rank].clone() if torch.is_tensor(value) and value.shape[:1] == (length,) else value
                for key, value in states.get(index, {}).items()
            }
        return optimizer_state | {'state': {index: values for index, values in states.items() if values}}


def _without(names: set[str], state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name not in names}
