"""The epochs: train, validate, save, until the last one or until told to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lib.errors import UserError
from lib.runtime.log import LOGGER
from lib.trainer.checkpoint import Checkpoint, Place, TrainingSet
from lib.trainer.events import EventFile
from lib.trainer.run_folder import RunFolder, read_bad_images, write_bad_images
from lib.trainer.step import Learner, Stopped, train_epoch

Validate = Callable[[], dict[str, float]]
_ALWAYS_PASS = 10


@dataclass
class FitPlan:
    """How long to train and what to keep.

    Attributes:
        max_epoch, valid_every, log_every: in epochs, epochs, steps.
        select_by: which valid metric makes the best model; 'last' keeps the newest.
        config, recipe, training_set: written into every checkpoint.
    """

    max_epoch: int
    valid_every: int
    log_every: int
    select_by: str
    config: str
    recipe: dict[str, Any]
    training_set: TrainingSet


class BadImages:
    """Training images that could not be decoded: each is named once; too many end the run.

    Args:
        name_of: row -> what to call it.
        num_images: in the training set.
        max_fraction: share above which the run ends; ten always pass.
    """

    def __init__(self, folder: RunFolder, name_of: Callable[[int], str], num_images: int, max_fraction: float) -> None:
        self._folder, self._name_of = folder, name_of
        self._limit = max(_ALWAYS_PASS, max_fraction * num_images)
        self._max_fraction = max_fraction
        # A run that goes on knows what it found before.
        self._reasons = read_bad_images(folder.path).get('train', {})

    def add(self, bad: list[tuple[int, str]]) -> None:
        """Note (row, reason) pairs.

        Raises:
            UserError: too many by now.
        """
        new = {self._name_of(row): reason for row, reason in bad}
        for name in new.keys() - self._reasons.keys():
            LOGGER.warning('%s: %s; another image of its class takes its place', name, new[name])
        if new.keys() <= self._reasons.keys():
            return
        self._reasons.update(new)
        write_bad_images(self._folder.path, 'train', self._reasons)
        if len(self._reasons) > self._limit:
            raise UserError(
                f'{len(self._reasons)} training images cannot be decoded, more than DATASET.MAX_BAD_FRACTION '
                f'{self._max_fraction:g} of all; they are listed in {self._folder.path / "bad_images.csv"}'
            )


def fit(
    learner: Learner,
    plan: FitPlan,
    place: Place,
    folder: RunFolder,
    validate: Validate,
    bad_images: BadImages,
) -> bool:
    """Train from `place` to the last epoch; with no epochs, evaluate the model and save it as it is.

    Args:
        validate: () -> metrics of the valid split; an empty dict when there is none.

    Returns:
        True when all epochs are done, False when the user stopped the run (which is saved).

    Raises:
        UserError: the loss is not finite, or too many images cannot be decoded. Checkpoints stay as they were.
    """
    events = EventFile(folder.path, place.epoch)
    try:
        if plan.max_epoch == 0 and place.epoch == place.step == 0:
            _finish_untrained(learner, plan, place, folder, validate(), events)
        with _interrupts() as should_stop:
            for epoch in range(place.epoch, plan.max_epoch):
                trained = train_epoch(
                    learner,
                    place,
                    log_every=plan.log_every,
                    should_stop=should_stop,
                    on_bad_images=bad_images.add,
                )
                valid = {}
                if (epoch + 1) % plan.valid_every == 0 or epoch + 1 == plan.max_epoch:
                    valid = validate()
                _finish_epoch(learner, plan, place, folder, {'train': trained, 'valid': valid}, events)
                if should_stop() and place.epoch < plan.max_epoch:
                    raise Stopped
    except Stopped:
        folder.save(_checkpoint(learner, plan, place))
        return False
    finally:
        events.close()
    return True


def _finish_epoch(
    learner: Learner,
    plan: FitPlan,
    place: Place,
    folder: RunFolder,
    metrics: dict[str, dict[str, float]],
    events: EventFile,
) -> None:
    place.epoch += 1
    place.step, place.loss_sum, place.num_right, place.num_images = 0, 0.0, 0, 0
    is_best = _is_best(plan.select_by, metrics['valid'], place)
    for split, values in metrics.items():
        if values:
            folder.append({'epoch': place.epoch, 'split': split, 'lr': metrics['train']['lr'], **values})
            events.add(place.epoch, split, values)
    folder.save(_checkpoint(learner, plan, place), is_best=is_best, end_of_epoch=True)
    LOGGER.info('%s', _describe(place.epoch, plan.max_epoch, metrics, is_best))


def _finish_untrained(
    learner: Learner,
    plan: FitPlan,
    place: Place,
    folder: RunFolder,
    valid: dict[str, float],
    events: EventFile,
) -> None:
    folder.forget_after(-1)  # what an earlier evaluation of the same model said
    place.best_result = None
    is_best = _is_best(plan.select_by, valid, place)
    if valid:
        folder.append({'epoch': 0, 'split': 'valid', 'lr': 0.0, **valid})
        events.add(0, 'valid', valid)
    folder.save(_checkpoint(learner, plan, place), is_best=is_best)
    LOGGER.info('no epochs, so the model is saved as it is%s', f':{_describe_valid(valid)}' if valid else '')


def _is_best(select_by: str, valid: dict[str, float], place: Place) -> bool:
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


def _checkpoint(learner: Learner, plan: FitPlan, place: Place) -> Checkpoint:
    return Checkpoint(
        state_dict=learner.model.state_dict(),
        config=plan.config,
        recipe=plan.recipe,
        place=place,
        training_set=plan.training_set,
        optimizer=learner.optimizer.state_dict(),
    )


def _describe(epoch: int, max_epoch: int, metrics: dict[str, dict[str, float]], is_best: bool) -> str:
    trained, valid = metrics['train'], metrics['valid']
    text = f'epoch {epoch:3d}/{max_epoch}  lr {trained["lr"]:.2g}  loss {trained["loss"]:.3f}'
    if valid:
        text += _describe_valid(valid)
    best = '  (best)' if valid and is_best else ''
    return f'{text}  {trained["images_per_second"]:.0f} images/s{best}'


def _describe_valid(valid: dict[str, float]) -> str:
    return f'  valid: mean class error {valid["mean_class_error"]:.1%}, top-1 {valid["top1"]:.1%}'


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a wish to stop after the step under way; the second one ends at once."""
    asked = threading.Event()

    def note(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        LOGGER.info('stopping after this step and saving; once more Ctrl-C ends at once, without saving')

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def restore(learner: Learner, checkpoint: Checkpoint) -> Place:
    """Put a checkpoint's weights and optimiser state into `learner`, and return its place.

    Raises:
        UserError: the state is that of another optimiser, or of other parameters.
    """
    learner.model.load_state_dict(checkpoint.state_dict)
    optimizer = learner.optimizer
    options = [{name: value for name, value in group.items() if name != 'params'} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(checkpoint.optimizer)
    except (KeyError, ValueError):  # whichever torch's optimisers find first
        raise UserError(
            f'{checkpoint.path}: the state of its optimiser does not fit OPTIMIZER.TYPE, '
            'OPTIMIZER.DECAY_NORM_AND_BIAS or MODEL.FREEZE_BACKBONE as they are now; leave them as they were, '
            f'or take the weights alone: --RESUME_MODEL {checkpoint.path} --RESUME_MODE finetune'
        ) from None
    # Momentum and weight decay are those of the config, not what the checkpoint was trained with.
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
    return checkpoint.place
