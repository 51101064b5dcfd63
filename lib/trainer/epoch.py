"""The steps of one epoch and their running metrics; nothing waits for the device except at log steps."""

import math
import time
from collections.abc import Callable

import torch

from lib.dataset.loader import FullBatchLoader, TrainLoader
from lib.dataset.pipeline import Batch
from lib.distributed.fully_sharded import local_tensor
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError
from lib.runtime.log import progress_bar
from lib.trainer.lbfgs import LBFGSStep
from lib.trainer.mixing.base import Mixer, with_image_weights
from lib.trainer.run_log import RunLog
from lib.trainer.step import StepResult, TrainStep
from lib.trainer.stop_signal import Action, StopController, StopRequested
from lib.trainer.train_state import TrainState


class RunningMetrics:
    """Running sums of an epoch, and the record of its images if there is one; they stay on the device until sync().

    They start from the sums in the progress and grow step by step, so they depend neither on when they are
    synchronized nor on where the epoch was interrupted.
    """

    def __init__(self, state: TrainState, group: ProcessGroup) -> None:
        progress, device = state.progress, state.device
        self._progress, self._group, self._samples = progress, group, state.samples
        # MPS has no float64; float32 is precise enough for a log line.
        dtype = torch.float32 if device.type == 'mps' else torch.float64
        loss_sum, num_right = (progress.loss_sum, progress.num_right) if group.is_main else (0.0, 0)
        self._loss_sum = torch.tensor(loss_sum, dtype=dtype, device=device)  # loss times images
        self._num_right = torch.tensor(num_right, dtype=torch.int64, device=device)
        self._num_images = progress.num_images
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, result: StepResult, batch: Batch, num_images: int, step: int) -> None:
        """Add the result of a step of `num_images` images over all ranks, `batch` on this one."""
        self._loss_sum += result.loss.to(self._loss_sum.dtype) * num_images
        self._num_right += result.num_right
        self._num_images += num_images
        first = (self._first_bad_step < 0) & ~torch.isfinite(result.loss)
        self._first_bad_step = torch.where(first, step, self._first_bad_step)
        if self._samples is not None and result.margins is not None and result.correct is not None:
            self._samples.add(batch.rows, batch.bad, result.margins, result.correct)

    def sync(self) -> int:
        """Write the sums over all ranks into the progress; return the first step with a non-finite loss, or -1.

        All ranks call it after the same step. It waits for the device.
        """
        self._progress.loss_sum = float(self._group.all_reduce(self._loss_sum))
        self._progress.num_right = int(self._group.all_reduce(self._num_right))
        self._progress.num_images = self._num_images
        if self._samples is not None:
            self._samples.flush()
        steps = [step for step in self._group.all_gather(self._first_bad_step).tolist() if step >= 0]
        return min(steps, default=-1)


class NotFinite(UserError):
    """The loss or the weights are infinite or NaN: training has diverged."""


def train_epoch(
    step: TrainStep | LBFGSStep,
    loader: TrainLoader | FullBatchLoader,
    mixer: Mixer,
    *,
    log_every_steps: int,
    stop: StopController,
    save: Callable[[], None],
    on_bad_images: Callable[[list[tuple[int, str]]], None],
    log: RunLog,
) -> dict[str, float]:
    """Run the remaining steps of the current epoch and update the progress.

    Args:
        log_every_steps: steps between two synchronizations of the running metrics.
        stop: polled after each step.
        save: saves the state of the run, when the timer requests it.
        on_bad_images: called with (row, reason) of undecodable images, over all ranks.
        log: gets the running metrics at log steps.

    Returns:
        loss, top1 (of the augmented images), lr (of the last step), images_per_second, seconds.

    Raises:
        NotFinite: the loss is not finite; detected at log steps and before a save.
        StopRequested: after the step in the progress.
    """
    state, group, progress = step.state, step.group, step.state.progress
    epoch = progress.epoch
    state.model.train()
    step.set_epoch(epoch)
    running = RunningMetrics(state, group)
    log.begin_epoch(progress)
    bad: list[tuple[int, str]] = []
    started = time.perf_counter() - progress.seconds
    batches = loader.batches(epoch, progress.step)
    bar = progress_bar(batches, total=loader.steps_per_epoch, start=progress.step, label=f'epoch {epoch + 1}')
    for batch in bar:
        global_step = epoch * loader.steps_per_epoch + progress.step
        mixed = mixer(batch.images, batch.labels, epoch=epoch, first_slot=loader.first_slot(progress.step))
        weighted = with_image_weights(mixed, batch.weights)
        running.add(step(weighted, global_step), batch, loader.batch_size, progress.step)
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
            log.log_step(progress, step.schedule(global_step), bar)
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


def check_weights(step: TrainStep | LBFGSStep, loader: TrainLoader | FullBatchLoader) -> None:
    """Raise NotFinite for trained weights that are not finite; the loss of a step is computed before its update."""
    weights = [local_tensor(w.detach()) for w in step.state.model.parameters() if w.requires_grad]
    # The maximum norm is not finite if any value is not, and takes no memory.
    norms = torch.stack([torch.linalg.vector_norm(weight, math.inf).float() for weight in weights if weight.numel()])
    if not norms.isfinite().all():
        raise _not_finite('the weights are', step, loader, step.state.progress.step - 1)


def _not_finite(
    what: str, step: TrainStep | LBFGSStep, loader: TrainLoader | FullBatchLoader, number: int
) -> NotFinite:
    epoch = step.state.progress.epoch
    lr = step.schedule(epoch * loader.steps_per_epoch + number)
    return NotFinite(
        f'{what} not finite from epoch {epoch + 1}, step {number + 1} on (learning rate {lr:g}); '
        'the last good checkpoint remains'
    )
