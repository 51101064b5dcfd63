"""The trainer: epochs of training, validation, model selection and saving, until the last epoch or a stop request."""

import signal
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass

from lib.dataset.loader import FullBatchLoader, TrainLoader
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError
from lib.inference.run import Evaluation
from lib.metrics.predictions import Predictions
from lib.model import Recognizer
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.async_save import AsyncSaver
from lib.trainer.checkpointing.state import TrainProgress
from lib.trainer.epoch import check_weights, train_epoch
from lib.trainer.lbfgs import LBFGSStep
from lib.trainer.mixing.base import Mixer
from lib.trainer.run_folder import BadImages, RunFolder, write_bad_images
from lib.trainer.run_log import EventFile, RunLength, RunLog
from lib.trainer.selection import ModelSelector, Selection
from lib.trainer.step import TrainStep
from lib.trainer.stop_signal import Action, StopController, StopRequested
from lib.trainer.trackers import Trackers
from lib.trainer.train_state import RunInfo, TrainState
from lib.trainer.validation import Validator


@dataclass(frozen=True)
class TrainConfig:
    """Numbers of a training run.

    Attributes:
        max_epoch: epochs to train; 0: evaluate the model and save it unchanged.
        valid_every_epochs: epochs between two validations; the last epoch is always validated.
        log_every_steps: steps between two synchronizations of the running metrics.
        selector: selects the epoch of best_model.pth.
        save_minutes: time between two saves of last.pth within an epoch; 0: none.
        max_bad_fraction: fraction of the training images that may be undecodable.
    """

    max_epoch: int
    valid_every_epochs: int
    log_every_steps: int
    selector: ModelSelector
    save_minutes: float
    max_bad_fraction: float


class Trainer:
    """Trains a model: `fit()` runs from the current progress to the last epoch.

    Args:
        config: numbers of the run.
        info: constants that every checkpoint holds.
        step: takes a step; its state is the state of the run.
        loader: training batches.
        mixer: mixes a batch before the step.
        validator: evaluates on the validation split; None: there is no such split.
        folder: for checkpoints, metrics and the list of undecodable images.
        image_name: row of the training split -> name of the image.
        num_images: number of training images.
        trackers: records of the run besides metrics.jsonl.
    """

    def __init__(
        self,
        config: TrainConfig,
        info: RunInfo,
        step: TrainStep | LBFGSStep,
        loader: TrainLoader | FullBatchLoader,
        mixer: Mixer,
        validator: Validator | None,
        folder: RunFolder,
        image_name: Callable[[int], str],
        num_images: int,
        trackers: Trackers,
    ) -> None:
        self.config, self.info, self.step, self.loader, self.mixer = config, info, step, loader, mixer
        self.validator, self.folder, self.trackers = validator, folder, trackers
        self._image_name, self._num_images = image_name, num_images
        self.stop = StopController(save_minutes=config.save_minutes, group=step.group)
        if isinstance(step, LBFGSStep):
            step.stop = self.stop

    @property
    def state(self) -> TrainState:
        """The state that checkpoints hold and a resumed run restores."""
        return self.step.state

    @property
    def progress(self) -> TrainProgress:
        """The position in the run."""
        return self.state.progress

    @property
    def global_step(self) -> int:
        """The number of steps since the start of the run."""
        return self.progress.epoch * self.loader.steps_per_epoch + self.progress.step

    @property
    def group(self) -> ProcessGroup:
        """The ranks that share each batch."""
        return self.step.group

    def fit(self) -> signal.Signals | None:
        """Train to the last epoch; with 0 epochs, evaluate the model and save it unchanged.

        Returns:
            None when all epochs are done; else the signal that ended the run, after its state was saved.

        Raises:
            NotFinite: the loss or the weights are not finite. Checkpoints remain as they were.
            TooManyBadImages: too many training images cannot be decoded.
            OSError: the end of an epoch or of the run could not be saved.
        """
        folder = self.folder
        self.stop.restart_timer()
        with (
            closing(EventFile(folder.path, self.global_step)) if self.trackers.has_events else nullcontext() as events,
            AsyncSaver(folder, self.stop.give_up) as saver,
        ):
            if events is not None:
                events.add_run(self.info.config, self.info.hyper_parameters)
            log = RunLog(self._length(), events, rate_name=self.step.rate_name)
            if self.config.max_epoch == 0 and self.progress.position == (0, 0):
                self._save_untrained(saver, log)
                return None
            with self.stop.listening():
                try:
                    self._run_epochs(saver, log)
                except StopRequested as request:
                    stopped_by = self._save_stopped(saver, request.action)
                    self.trackers.send(saver.saved)
                    return stopped_by
        return None

    def _length(self) -> RunLength:
        num_valid = 0 if self.validator is None else len(self.validator.names)
        config, loader = self.config, self.loader
        return RunLength(
            config.max_epoch, loader.steps_per_epoch, config.valid_every_epochs, loader.batch_size, num_valid
        )

    def _run_epochs(self, saver: AsyncSaver, log: RunLog) -> None:
        config, progress = self.config, self.progress
        bad_images = BadImages(self.folder, self._image_name, self._num_images, config.max_bad_fraction)
        for epoch in range(progress.epoch + 1, config.max_epoch + 1):
            train = self.train_epoch(saver, bad_images, log)
            is_due = epoch % config.valid_every_epochs == 0 or epoch == config.max_epoch
            valid, predictions = self.validate() if is_due else ({}, None)
            progress.next_epoch()
            is_selected = self._update_selection(valid, predictions)
            self._record(log, 'train', train['lr'], train)
            self._record(log, 'valid', train['lr'], valid)
            if self.state.samples is not None and self.folder.writes:
                self.state.samples.write(self.folder.path)  # first: after a kill the epoch runs again
            self._save(saver, is_selected=is_selected, end_of_epoch=True)
            is_best = self.state.selection.best_epoch == epoch
            log.log_epoch(epoch, train, valid, is_best=is_best)
            self.trackers.send(saver.saved)  # often of the epoch before, while this one is being written
            self._raise_if_stopped()
        saver.wait()
        self.trackers.send(saver.saved)
        self._raise_if_stopped()  # a signal may have arrived while the checkpoint was written
        for line in config.selector.describe(self.state.selection, progress.epoch):
            LOGGER.info('%s', line)
        selected = self.state.selection.selected_epoch
        if isinstance(self.step, LBFGSStep) and selected:
            LOGGER.info('lambda %.2g, epoch %d of %d', self.step.schedule(selected - 1), selected, progress.epoch)

    def train_epoch(self, saver: AsyncSaver, bad_images: BadImages, log: RunLog) -> dict[str, float]:
        """Run the remaining steps of the current epoch; return its metrics, see lib.trainer.epoch.train_epoch."""
        metrics = train_epoch(
            self.step,
            self.loader,
            self.mixer,
            log_every_steps=self.config.log_every_steps,
            stop=self.stop,
            save=lambda: self._save_within_epoch(saver, may_fail=True),
            on_bad_images=bad_images.add,
            log=log,
        )
        check_weights(self.step, self.loader)
        return metrics

    def validate(self) -> tuple[dict[str, float], Predictions | None]:
        """Return validation metrics and predictions of the current state; {} and None without a validation split."""
        if self.validator is None:
            return {}, None
        metrics, evaluation = self.validator.metrics(self.state, self.stop.check)
        self._write_bad_images(self.validator, evaluation)
        return metrics, evaluation.predictions

    def evaluate(self, model: Recognizer) -> Evaluation | None:
        """Evaluate another model, with its final weights, on the validation split; None without one."""
        if self.validator is None:
            return None
        evaluation = self.validator.evaluate(model, is_final=True)
        self._write_bad_images(self.validator, evaluation)
        return evaluation

    def _write_bad_images(self, validator: Validator, evaluation: Evaluation) -> None:
        if self.folder.writes:
            write_bad_images(self.folder.path, 'valid', validator.bad_images(evaluation))

    def _save_untrained(self, saver: AsyncSaver, log: RunLog) -> None:
        valid, predictions = self.validate()
        self.folder.forget_after(-1)  # metrics of an earlier evaluation of the same model
        self.state.selection = Selection()
        is_selected = self._update_selection(valid, predictions)
        self._record(log, 'valid', 0.0, valid)
        self._save(saver, is_selected=is_selected)
        saver.wait()
        self.trackers.send(saver.saved)
        LOGGER.info('0 epochs: model saved unchanged%s', _valid_text(valid) if valid else '')

    def _update_selection(self, valid: dict[str, float], predictions: Predictions | None) -> bool:
        """Return whether the finished epoch is selected, and note it in the state."""
        state, epoch = self.state, self.progress.epoch
        state.selection = self.config.selector.update(state.selection, epoch, valid, predictions)
        return state.selection.selected_epoch == epoch

    def _save_stopped(self, saver: AsyncSaver, action: Action) -> signal.Signals | None:
        """Save the state of a stopped run unless it is saved already; return the signal that stopped the run."""
        if action is Action.GIVE_UP:
            saver.hurry()
        saver.wait()
        if action is Action.GIVE_UP:  # another rank has reported the reason
            raise UserError('the run cannot be saved, so it ends') from None
        # Ranks that gather a sharded backbone save together, by what the main rank, which writes it, has saved.
        saved = saver.saved if self.state.sharded is None else self.group.broadcast_object(saver.saved)
        if saved != self.progress.position:
            self._save_within_epoch(saver)
            saver.wait()
        return action.signal

    def _raise_if_stopped(self) -> None:
        action = self.stop.poll(last=True)
        if action.stops:
            raise StopRequested(action)

    def _record(self, log: RunLog, split: str, lr: float, metrics: dict[str, float]) -> None:
        """Append the metrics of an epoch to metrics.jsonl and to the TensorBoard events."""
        if not metrics:
            return
        self.folder.append({'epoch': self.progress.epoch, 'split': split, 'lr': lr, **metrics})
        log.record(self.progress.epoch, split, metrics)

    def _save_within_epoch(self, saver: AsyncSaver, *, may_fail: bool = False) -> None:
        check_weights(self.step, self.loader)
        self._save(saver, may_fail=may_fail)

    def _save(
        self, saver: AsyncSaver, *, is_selected: bool = False, end_of_epoch: bool = False, may_fail: bool = False
    ) -> None:
        """Save the current state. All ranks call it; the main rank writes, the others their classifier shards.

        All ranks gather a sharded backbone, and the main rank writes all its parameters.
        """
        if self.folder.writes or self.state.model.is_sharded:
            saver.submit(
                lambda: self.state.to_checkpoint(self.info, self.folder, self.group),
                is_selected=is_selected,
                end_of_epoch=end_of_epoch,
                may_fail=may_fail,
            )
        elif self.state.sharded is not None:
            self.state.to_checkpoint(self.info, self.folder, self.group)
        self.stop.restart_timer()


def _valid_text(valid: dict[str, float]) -> str:
    """Return mean class error and top-1 accuracy of the validation split."""
    return f'; mean class error {valid["mean_class_error"]:.1%}, top-1 {valid["top1"]:.1%}'
