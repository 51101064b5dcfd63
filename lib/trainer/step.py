"""One epoch of training: the steps, and nothing between them that waits for the device."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lib.dataset.loader import TrainLoader
from lib.errors import UserError
from lib.loss.targets import Targets
from lib.model import Recognizer
from lib.runtime.log import LOGGER, progress
from lib.runtime.seeding import Purpose, torch_seed
from lib.trainer.checkpoint import Place
from lib.trainer.mixing.mixed import Mixed, Mixer
from lib.trainer.objective import Objective


class Stopped(Exception):
    """The user asked to stop; the place in the epoch is kept."""


class NotFinite(UserError):
    """The loss became infinite or not a number; the weights are of no use any more."""


@dataclass
class Learner:
    """What a step needs.

    Attributes:
        model: holds the parameters.
        forward: a TrainingForward of it as the step calls it, maybe spread over GPUs.
        objective: what is minimised.
        mixer: what happens to a batch first.
        optimizer: of the model's parameters.
        schedule: global step -> learning rate.
        loader: batches of an epoch.
        seed: of the run.
    """

    model: Recognizer
    forward: nn.Module
    objective: Objective
    mixer: Mixer
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    loader: TrainLoader
    seed: int


class _Sums:
    """Running sums of an epoch, on the device until somebody looks."""

    def __init__(self, place: Place, device: torch.device) -> None:
        self._place = place
        self._new = torch.zeros(2, dtype=torch.float32, device=device)  # loss times images, right answers
        self._num_images = 0
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, targets: Targets, step: int) -> None:
        loss, logits = loss.detach(), logits.detach()
        right = (logits.argmax(dim=1) == targets.hard).sum()
        self._new += torch.stack([loss * len(logits), right.to(loss.dtype)])
        self._num_images += len(logits)
        first = (self._first_bad_step < 0) & ~torch.isfinite(loss)
        self._first_bad_step = torch.where(first, step, self._first_bad_step)

    def look(self) -> int:
        """Move the sums into the place, and return the first step with a loss that is not finite (-1: none)."""
        loss_sum, num_right = self._new.tolist()
        self._place.loss_sum += loss_sum
        self._place.num_right += int(num_right)
        self._place.num_images += self._num_images
        self._new.zero_()
        self._num_images = 0
        return int(self._first_bad_step)


def train_epoch(
    learner: Learner,
    place: Place,
    *,
    log_every: int,
    should_stop: Callable[[], bool],
    on_bad_images: Callable[[list[tuple[int, str]]], None],
) -> dict[str, float]:
    """Run the rest of the epoch at `place`, which is moved along.

    Returns:
        loss, top1 (of the augmented images, while training), lr (of the last step), images_per_second, seconds.

    Raises:
        NotFinite: naming epoch, step and learning rate; noticed at log steps, and before anything is saved.
        Stopped: `should_stop` said so; `place` says after which step.
    """
    loader, epoch = learner.loader, place.epoch
    device = next(learner.model.parameters()).device
    learner.model.train()
    learner.objective.set_epoch(epoch)
    sums = _Sums(place, device)
    started, images_before = time.perf_counter(), place.num_images
    batches = loader.batches(epoch, place.step)
    bar = progress(batches, total=loader.steps_per_epoch, start=place.step, label=f'epoch {epoch + 1}')
    for batch in bar:
        global_step = epoch * loader.steps_per_epoch + place.step
        mixed = learner.mixer(batch.images, batch.labels, epoch=epoch, first_slot=place.step * loader.batch_size)
        loss, logits = _step(learner, mixed, global_step)
        sums.add(loss, logits, mixed.targets, place.step)
        if batch.bad:
            on_bad_images(batch.bad)
        place.step += 1
        if place.step % log_every == 0 or place.step == loader.steps_per_epoch or should_stop():
            _raise_if_not_finite(sums.look(), epoch, learner)
            bar.set_postfix(loss=f'{place.loss_sum / place.num_images:.3f}')
            _log_when_piped(bar, place, loader.steps_per_epoch)
        if should_stop() and place.step < loader.steps_per_epoch:
            raise Stopped
    seconds = time.perf_counter() - started
    return {
        'loss': place.loss_sum / place.num_images,
        'top1': place.num_right / place.num_images,
        'lr': learner.schedule(place.epoch * loader.steps_per_epoch + place.step - 1),
        'images_per_second': (place.num_images - images_before) / seconds,
        'seconds': seconds,
    }


def _step(learner: Learner, mixed: Mixed, global_step: int) -> tuple[torch.Tensor, torch.Tensor]:
    # Dropout and drop path of this step depend on nothing that came before it, so a resumed run draws the same.
    torch.manual_seed(torch_seed(learner.seed, Purpose.DROPOUT, global_step))
    for group in learner.optimizer.param_groups:
        group['lr'] = learner.schedule(global_step)
    try:
        outputs = learner.forward(mixed.images, mixed.shares, mixed.stage)
    except ValueError as error:
        if 'more than 1 value per channel' not in str(error):
            raise
        raise UserError(
            f'BatchNorm needs more than one value a channel, but a step has {len(mixed.images)} images of '
            f'{mixed.images.shape[-1]} px: a larger TRAIN.BATCH_SIZE or INPUT.SIZE, or a MODEL.BACKBONE without '
            'BatchNorm'
        ) from None
    loss = learner.objective(outputs, mixed.targets, mixed.images)
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    learner.optimizer.step()
    return loss, outputs.logits


def _raise_if_not_finite(step: int, epoch: int, learner: Learner) -> None:
    if step < 0:
        return
    lr = learner.schedule(epoch * learner.loader.steps_per_epoch + step)
    raise NotFinite(
        f'the loss is not finite from epoch {epoch + 1}, step {step + 1} on (learning rate {lr:g}); '
        'the last good checkpoint is kept. A lower OPTIMIZER.LR or a longer SCHEDULE.WARMUP_EPOCHS helps most often'
    )


def _log_when_piped(bar, place: Place, steps: int) -> None:
    """Say how far the epoch is where no bar can be drawn; once a log interval, and not at its very end."""
    if bar.disable and place.step < steps:
        loss = place.loss_sum / place.num_images
        LOGGER.info('epoch %d, step %d of %d: loss %s', place.epoch + 1, place.step, steps, _plain(loss))


def _plain(value: float) -> str:
    return f'{value:.4f}' if math.isfinite(value) else str(value)
