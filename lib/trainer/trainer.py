"""The epochs: train, validate, save, until the last one or until told to stop."""

import math
import signal
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from lib.errors import UserError
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.async_save import AsyncSaver
from lib.trainer.checkpointing.sharded import CLASSIFIER_PREFIX, ClassifierShard, names_by_index, take_classifier_rows
from lib.trainer.checkpointing.state import Checkpoint, TrainingSet, TrainProgress
from lib.trainer.run_folder import BadImages, RunFolder
from lib.trainer.running_metrics import EventFile
from lib.trainer.step import Learner, raise_not_finite, train_epoch
from lib.trainer.stop_signal import Action, StopController, StopRequested

Validate = Callable[[Callable[[], None]], dict[str, float]]


@dataclass
class FitPlan:
    """How long to train and what to keep.

    Attributes:
        max_epoch, valid_every, log_every: in epochs, epochs, steps.
        select_by: which valid metric makes the best model; 'last' keeps the newest.
        config, recipe, training_set: written into every checkpoint.
        save_minutes: between two last.pth within an epoch; 0: none.
    """

    max_epoch: int
    valid_every: int
    log_every: int
    select_by: str
    config: str
    recipe: dict[str, Any]
    training_set: TrainingSet
    save_minutes: float = 0.0


def fit(
    learner: Learner,
    plan: FitPlan,
    place: TrainProgress,
    folder: RunFolder,
    validate: Validate,
    bad_images: BadImages,
) -> signal.Signals | None:
    """Train from `place` to the last epoch; with no epochs, evaluate the model and save it as it is.

    Args:
        validate: check -> metrics of the valid split; an empty dict when there is none. `check` is called now and
            then, and may raise: the pass is then given up, and done again when the run goes on.

    Returns:
        None when all is done; the signal that ended the run (which is saved).

    Raises:
        UserError: the loss is not finite, or too many images cannot be decoded. Checkpoints stay as they were.
        OSError: the end of an epoch or of the run could not be saved.
    """
    wishes = StopController(save_minutes=plan.save_minutes, group=learner.group)
    with (
        closing(EventFile(folder.path, place.epoch)) if folder.writes else nullcontext() as events,
        AsyncSaver(folder, wishes.give_up) as saver,
    ):
        run = _Run(learner, plan, place, folder, saver, wishes, events)
        if plan.max_epoch == 0 and place.epoch == place.step == 0:
            run.finish_untrained(validate(lambda: None))
            return None
        with wishes.listening():
            return run.train(validate, bad_images)


@dataclass
class _Run:
    """A run under way, and all that it writes into."""

    learner: Learner
    plan: FitPlan
    progress: TrainProgress
    folder: RunFolder
    saver: AsyncSaver
    wishes: StopController
    events: EventFile | None

    def train(self, validate: Validate, bad_images: BadImages) -> signal.Signals | None:
        try:
            for epoch in range(self.progress.epoch, self.plan.max_epoch):
                self.train_epoch(epoch, validate, bad_images)
                self.stop_if_wished()
            self.saver.wait()
            self.stop_if_wished()  # while that was written
        except StopRequested as stopped:
            if stopped.wish is Action.GIVE_UP:
                self.saver.hurry()
            self.saver.wait()
            if stopped.wish is Action.GIVE_UP:  # another rank has told why
                raise UserError('the run cannot be saved, so it ends') from None
            if self.saver.saved != self.progress.position:
                self.save_in_epoch()
                self.saver.wait()
            return stopped.wish.signal
        return None

    def train_epoch(self, epoch: int, validate: Validate, bad_images: BadImages) -> None:
        trained = train_epoch(
            self.learner,
            self.progress,
            log_every=self.plan.log_every,
            wishes=self.wishes,
            save=lambda: self.save_in_epoch(may_fail=True),
            on_bad_images=bad_images.add,
        )
        _raise_if_weights_not_finite(self.learner, self.progress)
        valid = {}
        if (epoch + 1) % self.plan.valid_every == 0 or epoch + 1 == self.plan.max_epoch:
            valid = validate(self.wishes.check)
        self.finish_epoch(trained, valid)

    def stop_if_wished(self) -> None:
        wish = self.wishes.poll(last=True)
        if wish.stops:
            raise StopRequested(wish)

    def finish_epoch(self, trained: dict[str, float], valid: dict[str, float]) -> None:
        plan, place = self.plan, self.progress
        place.next_epoch()
        is_best = _is_best(plan.select_by, valid, place)
        for split, values in (('train', trained), ('valid', valid)):
            if values:
                self.note(split, trained['lr'], values)
        self.save(is_best=is_best, end_of_epoch=True)
        LOGGER.info('%s', _describe(place.epoch, plan.max_epoch, trained, valid, is_best))

    def finish_untrained(self, valid: dict[str, float]) -> None:
        self.folder.forget_after(-1)  # what an earlier evaluation of the same model said
        self.progress.best_result = None
        is_best = _is_best(self.plan.select_by, valid, self.progress)
        if valid:
            self.note('valid', 0.0, valid)
        self.save(is_best=is_best)
        LOGGER.info('no epochs, so the model is saved as it is%s', f':{_describe_valid(valid)}' if valid else '')

    def note(self, split: str, lr: float, values: dict[str, float]) -> None:
        self.folder.append({'epoch': self.progress.epoch, 'split': split, 'lr': lr, **values})
        if self.events:
            self.events.add(self.progress.epoch, split, values)

    def save_in_epoch(self, *, may_fail: bool = False) -> None:
        _raise_if_weights_not_finite(self.learner, self.progress)
        self.save(may_fail=may_fail)

    def save(self, **how: bool) -> None:
        """Save the run as it is. All ranks come here; the main one writes, others what they alone hold."""
        if self.folder.writes or self.learner.model.is_partial:
            self.saver.submit(self.checkpoint, **how)
        self.wishes.saved()

    def checkpoint(self) -> Checkpoint:
        learner, plan = self.learner, self.plan
        average, scaler, trained = learner.average, learner.scaler, learner.model.state_dict()
        whole = Checkpoint(
            state_dict=trained if average is None else average.state_dict(),
            config=plan.config,
            recipe=plan.recipe,
            progress=self.progress,
            training_set=plan.training_set,
            optimizer=learner.optimizer.state_dict(),
            training_state=None if average is None else trained,
            scaler=None if scaler is None else scaler.state_dict(),
            history=self.folder.history(),
            bad_images=self.folder.bad_images(),
        )
        return _with_head_apart(learner, whole) if learner.model.is_partial else whole


def _with_head_apart(learner: Learner, checkpoint: Checkpoint) -> Checkpoint:
    """Take out the rows of the classifier that this rank holds; beside the main rank's, nothing else is written."""
    classifier, group = learner.model.classifier, learner.group
    named = ((f'{CLASSIFIER_PREFIX}{name}', parameter) for name, parameter in classifier.named_parameters())
    state, training, optimizer, rows = take_classifier_rows(
        checkpoint.state_dict, checkpoint.training_state, checkpoint.optimizer, names_by_index(learner.optimizer, named)
    )
    head = ClassifierShard(rows, classifier.classes, classifier.num_classes, group.rank, group.world_size)
    if not group.is_main:
        return Checkpoint({}, progress=checkpoint.progress, classifier_shard=head)
    return replace(checkpoint, state_dict=state, training_state=training, optimizer=optimizer, classifier_shard=head)


def _is_best(select_by: str, valid: dict[str, float], place: TrainProgress) -> bool:
    """Whether the epoch just done is the best so far; noted in `place`. Losses and errors fall, accuracies rise."""
    if select_by == 'last' or not valid:
        # Nothing to choose by: the newest is kept as best.
        better = select_by == 'last' or place.best_result is None
        result = valid.get('mean_class_error')
    else:
        result = valid[select_by]
        sign = 1 if select_by.startswith('top') else -1
        better = place.best_result is None or sign * result > sign * place.best_result
    if better:
        place.best_result, place.best_epoch = result, place.epoch
    return better


def _raise_if_weights_not_finite(learner: Learner, place: TrainProgress) -> None:
    """A finite loss says nothing of the weights after its own step: they are looked at before they are written."""
    weights = [weight.detach() for weight in learner.model.parameters() if weight.numel()]
    # The largest absolute value of each is not finite if any value is not, and takes no memory.
    largest = torch.stack([torch.linalg.vector_norm(weight, math.inf).float() for weight in weights])
    if not largest.isfinite().all():
        raise_not_finite('the weights are', place.epoch, place.step - 1, learner)


def _describe(epoch: int, max_epoch: int, trained: dict[str, float], valid: dict[str, float], is_best: bool) -> str:
    text = f'epoch {epoch:3d}/{max_epoch}  lr {trained["lr"]:.2g}  loss {trained["loss"]:.3f}'
    if valid:
        text += _describe_valid(valid)
    best = '  (best)' if valid and is_best else ''
    return f'{text}  {trained["images_per_second"]:.0f} images/s{best}'


def _describe_valid(valid: dict[str, float]) -> str:
    return f'  valid: mean class error {valid["mean_class_error"]:.1%}, top-1 {valid["top1"]:.1%}'


def restore(learner: Learner, checkpoint: Checkpoint) -> TrainProgress:
    """Put a checkpoint's weights and states into `learner`, and return its place.

    Raises:
        UserError: the state is that of another optimiser, or of other parameters.
    """
    learner.model.load_state_dict(checkpoint.training_state or checkpoint.state_dict)
    if learner.average is not None:
        # Of a run that had no average until now, it begins with the weights.
        learner.average.load_state_dict(checkpoint.state_dict)
    if learner.scaler is not None and checkpoint.scaler:
        learner.scaler.load_state_dict(checkpoint.scaler)
    optimizer, saved = learner.optimizer, checkpoint.optimizer
    if learner.model.is_partial:
        saved = _own_states(learner, saved)
    try:
        optimizer.load_state_dict(saved)
    except (KeyError, ValueError):  # whichever torch's optimisers find first
        raise UserError(
            f'{checkpoint.path}: the state of its optimiser does not fit OPTIMIZER.TYPE, '
            'OPTIMIZER.DECAY_NORM_AND_BIAS, OPTIMIZER.LAYER_DECAY or MODEL.FREEZE_BACKBONE as they are now; leave them '
            f'as they were, or take the weights alone: --RESUME_MODEL {checkpoint.path} --RESUME_MODE finetune'
        ) from None
    return checkpoint.progress


def _own_states(learner: Learner, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the optimiser's state with the rows that this rank holds, of a classifier that was written whole."""
    classifier = learner.model.classifier
    rows = slice(classifier.classes.start, classifier.classes.stop)
    states = dict(saved['state'])
    for number in names_by_index(learner.optimizer, classifier.named_parameters()):
        states[number] = {
            key: value[rows] if torch.is_tensor(value) and value.shape[:1] == (classifier.num_classes,) else value
            for key, value in states.get(number, {}).items()
        }
    return saved | {'state': {number: values for number, values in states.items() if values}}
