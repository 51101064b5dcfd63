"""The steps of one epoch, with nothing between them that waits for the device except at log steps."""

import math
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

from lib.dataset.loader import TrainLoader
from lib.errors import UserError
from lib.runtime.log import LOGGER, progress_bar
from lib.trainer.checkpointing.state import TrainProgress
from lib.trainer.mixing.base import Mixer
from lib.trainer.running_metrics import RunningMetrics
from lib.trainer.step import TrainStep
from lib.trainer.stop_signal import Action, StopController, StopRequested


class NotFinite(UserError):
    """The loss or the weights are infinite or NaN: training has diverged."""


def train_epoch(
    step: TrainStep,
    loader: TrainLoader,
    mixer: Mixer,
    *,
    log_every_steps: int,
    stop: StopController,
    save: Callable[[], None],
    on_bad_images: Callable[[list[tuple[int, str]]], None],
) -> dict[str, float]:
    """Run the remaining steps of the current epoch and update the progress.

    Args:
        log_every_steps: steps between two synchronizations of the running metrics.
        stop: polled after each step.
        save: saves the state of the run, when the timer requests it.
        on_bad_images: called with (row, reason) of undecodable images, over all ranks.

    Returns:
        loss, top1 (of the augmented images), lr (of the last step), images_per_second, seconds.

    Raises:
        NotFinite: the loss is not finite; detected at log steps and before a save.
        StopRequested: after the step in the progress.
    """
    state, group, progress = step.state, step.group, step.state.progress
    epoch = progress.epoch
    state.model.train()
    step.objective.set_epoch(epoch)
    running = RunningMetrics(progress, group, state.device)
    bad: list[tuple[int, str]] = []
    started = time.perf_counter() - progress.seconds
    batches = loader.batches(epoch, progress.step)
    bar = progress_bar(batches, total=loader.steps_per_epoch, start=progress.step, label=f'epoch {epoch + 1}')
    for batch in bar:
        global_step = epoch * loader.steps_per_epoch + progress.step
        mixed = mixer(batch.images, batch.labels, epoch=epoch, first_slot=loader.first_slot(progress.step))
        running.add(step(mixed, global_step), loader.batch_size, progress.step)
        bad += batch.bad
        progress.step += 1
        last = progress.step == loader.steps_per_epoch
        action = stop.poll(last=last)
        sync = progress.step % log_every_steps == 0 or last or bool(action)
        if sync or (bad and group.world_size == 1):
            on_bad_images([image for images in group.all_gather_objects(bad) for image in images])
            bad.clear()
        if sync:
            progress.seconds = time.perf_counter() - started
            first_bad_step = running.sync()
            if first_bad_step >= 0:
                raise _not_finite('the loss is', step, loader, first_bad_step)
            bar.set_postfix(loss=f'{progress.loss_sum / progress.num_images:.3f}')
            _log_without_bar(bar, progress, loader.steps_per_epoch)
        if action == Action.SAVE:
            save()
        elif action.stops:
            raise StopRequested(action)
    return {
        'loss': progress.loss_sum / progress.num_images,
        'top1': progress.num_right / progress.num_images,
        'lr': step.schedule(epoch * loader.steps_per_epoch + progress.step - 1),
        'images_per_second': progress.num_images / progress.seconds,
        'seconds': progress.seconds,
    }


def check_weights(step: TrainStep, loader: TrainLoader) -> None:
    """Raise NotFinite for weights that are not finite; the loss of a step is computed before its update."""
    weights = [weight.detach() for weight in step.state.model.parameters() if weight.numel()]
    # The maximum norm is not finite if any value is not, and takes no memory.
    norms = torch.stack([torch.linalg.vector_norm(weight, math.inf).float() for weight in weights])
    if not norms.isfinite().all():
        raise _not_finite('the weights are', step, loader, step.state.progress.step - 1)


def _not_finite(what: str, step: TrainStep, loader: TrainLoader, number: int) -> NotFinite:
    epoch = step.state.progress.epoch
    lr = step.schedule(epoch * loader.steps_per_epoch + number)
    return NotFinite(
        f'{what} not finite from epoch {epoch + 1}, step {number + 1} on (learning rate {lr:g}); '
        'the last good checkpoint remains'
    )


def _log_without_bar(bar: tqdm, progress: TrainProgress, steps: int) -> None:
    """Log the progress within the epoch where the output is no terminal, once per log interval."""
    if bar.disable and progress.step < steps:
        loss = progress.loss_sum / progress.num_images
        loss_text = f'{loss:.4f}' if math.isfinite(loss) else str(loss)
        LOGGER.info('epoch %d, step %d of %d: loss %s', progress.epoch + 1, progress.step, steps, loss_text)
