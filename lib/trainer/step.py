"""One epoch of training: the steps, and nothing between them that waits for the device."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from lib.dataset.loader import TrainLoader
from lib.errors import UserError
from lib.model import Recognizer
from lib.optim.ema import WeightAverage
from lib.runtime.log import LOGGER, progress
from lib.runtime.parallel import without_sync
from lib.runtime.ranks import ALONE, Ranks
from lib.runtime.seeding import Purpose, torch_seed
from lib.trainer.checkpoint import Place
from lib.trainer.forward import Outputs
from lib.trainer.head import Share
from lib.trainer.mixing.mixed import Mixed, Mixer
from lib.trainer.objective import Objective
from lib.trainer.parts import Parts, whole_batch


class Stopped(Exception):
    """The user asked to stop; the place in the epoch is kept."""


class NotFinite(UserError):
    """The loss became infinite or not a number; the weights are of no use any more."""


@dataclass
class Learner:
    """What a step needs.

    Attributes:
        model: holds the parameters.
        forward: a TrainingForward of it as the step calls it, maybe spread over devices.
        objective: what is minimised.
        mixer: what happens to a batch first.
        optimizer: of the model's parameters.
        schedule: global step -> learning rate.
        loader: batches of an epoch.
        seed: of the run.
        parts: how a batch is computed; None: in one go.
        ranks: that share a batch.
        scaler: of the loss, where gradients in half precision would vanish; None: none.
        clip: bounds the gradients, which are there when it is called; None: any will do.
        average: of the weights over the steps; None: none.
    """

    model: Recognizer
    forward: nn.Module
    objective: Objective
    mixer: Mixer
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    loader: TrainLoader
    seed: int
    parts: Parts | None = None
    ranks: Ranks = ALONE
    scaler: torch.amp.GradScaler | None = None
    clip: Callable[[], object] | None = None
    average: WeightAverage | None = None


class Done(NamedTuple):
    """What a step did: this rank's share of the batch's loss, and how many of its images were right; both scalars."""

    loss: torch.Tensor
    num_right: torch.Tensor


class _Sums:
    """Running sums of an epoch, on the device until somebody looks."""

    def __init__(self, place: Place, device: torch.device) -> None:
        self._place = place
        self._new = torch.zeros(2, dtype=torch.float32, device=device)  # loss times images, right answers
        self._num_images = 0
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, done: Done, num_images: int, step: int) -> None:
        loss = done.loss
        self._new += torch.stack([loss * num_images, done.num_right.to(loss.dtype)])
        self._num_images += num_images
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
    device, num_images = next(learner.model.parameters()).device, loader.batch_size
    learner.model.train()
    learner.objective.set_epoch(epoch)
    sums = _Sums(place, device)
    started, images_before = time.perf_counter(), place.num_images
    batches = loader.batches(epoch, place.step)
    bar = progress(batches, total=loader.steps_per_epoch, start=place.step, label=f'epoch {epoch + 1}')
    for batch in bar:
        global_step = epoch * loader.steps_per_epoch + place.step
        mixed = learner.mixer(batch.images, batch.labels, epoch=epoch, first_slot=loader.first_slot(place.step))
        sums.add(_step(learner, mixed, global_step), num_images, place.step)
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


def _step(learner: Learner, mixed: Mixed, global_step: int) -> Done:
    for group in learner.optimizer.param_groups:
        group['lr'] = learner.schedule(global_step) * group.get('lr_scale', 1.0)
    learner.optimizer.zero_grad(set_to_none=True)
    done = _gradients(learner, mixed, global_step)
    scaler = learner.scaler
    if learner.clip is not None:
        if scaler is not None:
            scaler.unscale_(learner.optimizer)
        learner.clip()
    if scaler is None:
        learner.optimizer.step()
    else:
        scaler.step(learner.optimizer)
        scaler.update()
    if learner.average is not None:
        learner.average.update()
    return done


def _gradients(learner: Learner, mixed: Mixed, global_step: int) -> Done:
    """Add up the gradients of a batch, part by part."""
    ranks, num_images = learner.ranks, len(mixed.images)
    parts = learner.parts or whole_batch(num_images)
    divisor = ranks.sum(learner.objective.divisor(mixed.targets))
    seed = torch_seed(learner.seed, Purpose.HEAD, global_step)
    done = []
    for number, rows in enumerate(parts.slices):
        # Dropout and drop path of a part depend on nothing that came before it, so a resumed run draws the same.
        torch.manual_seed(torch_seed(learner.seed, Purpose.DROPOUT, global_step, number * ranks.count + ranks.rank))
        share = Share(divisor, (rows.stop - rows.start) / parts.num_images, seed, parts.sizes[number])
        with without_sync(learner.forward, number + 1 < len(parts.slices)):
            part = mixed.part(rows)
            computed = learner.objective(_forward(learner, part), part.targets, part.images, share)
            # Where ranks share a model, its gradient is the mean over them of what each one gives.
            loss = computed.loss * ranks.count
            (loss if learner.scaler is None else learner.scaler.scale(loss)).backward()
        done.append(Done(computed.loss.detach(), (computed.predicted == part.targets.hard).sum()))
    return done[0] if len(done) == 1 else Done(*(torch.stack(values).sum() for values in zip(*done, strict=True)))


def _forward(learner: Learner, mixed: Mixed) -> Outputs:
    try:
        return learner.forward(mixed.images, mixed.shares, mixed.stage)
    except ValueError as error:
        if 'more than 1 value per channel' not in str(error):
            raise
        raise UserError(
            f'BatchNorm needs more than one value a channel, but a step has {len(mixed.images)} images of '
            f'{mixed.images.shape[-1]} px: a larger TRAIN.BATCH_SIZE or INPUT.SIZE, or a MODEL.BACKBONE without '
            'BatchNorm'
        ) from None


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
