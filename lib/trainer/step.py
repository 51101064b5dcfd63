"""One epoch of training: the steps, and nothing between them that waits for the device."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, Protocol

import torch
from torch import nn

from lib.dataset.loader import TrainLoader
from lib.errors import UserError
from lib.loss.targets import Targets
from lib.model import Recognizer
from lib.runtime.log import LOGGER, progress
from lib.runtime.ranks import ALONE, Ranks
from lib.runtime.seeding import Purpose, torch_seed
from lib.trainer.checkpoint import Place
from lib.trainer.mixing.mixed import Mixed, Mixer
from lib.trainer.objective import Objective
from lib.trainer.wishes import Stopped, Wish, Wishes


class NotFinite(UserError):
    """The loss became infinite or not a number; the weights are of no use any more."""


class Average(Protocol):
    """An average of a model's weights over the steps."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return it under the names of the model's own state_dict."""
        ...

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None: ...


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
        ranks: that share a batch.
        scaler: of the loss, where gradients in half precision would vanish; None: none.
        average: of the weights over the steps, which is what predicts; None: none.
    """

    model: Recognizer
    forward: nn.Module
    objective: Objective
    mixer: Mixer
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    loader: TrainLoader
    seed: int
    ranks: Ranks = ALONE
    scaler: torch.amp.GradScaler | None = None
    average: Average | None = None


class _Sums:
    """Running sums of an epoch, on the device until somebody looks.

    They are added up step by step from those of the place on, so that they do not depend on who looks when, nor on
    where the epoch was interrupted.
    """

    def __init__(self, place: Place, device: torch.device) -> None:
        self._place = place
        # MPS has no float64; float32 does for a figure that is looked at.
        dtype = torch.float32 if device.type == 'mps' else torch.float64
        self._loss_sum = torch.tensor(place.loss_sum, dtype=dtype, device=device)  # loss times images
        self._num_right = torch.tensor(place.num_right, dtype=torch.int64, device=device)
        self._num_images = place.num_images
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, targets: Targets, step: int) -> None:
        loss, logits = loss.detach(), logits.detach()
        self._loss_sum += loss.to(self._loss_sum.dtype) * len(logits)
        self._num_right += (logits.argmax(dim=1) == targets.hard).sum()
        self._num_images += len(logits)
        first = (self._first_bad_step < 0) & ~torch.isfinite(loss)
        self._first_bad_step = torch.where(first, step, self._first_bad_step)

    def look(self) -> int:
        """Copy the sums into the place, and return the first step with a loss that is not finite (-1: none)."""
        self._place.loss_sum = float(self._loss_sum)
        self._place.num_right = int(self._num_right)
        self._place.num_images = self._num_images
        return int(self._first_bad_step)


def train_epoch(
    learner: Learner,
    place: Place,
    *,
    log_every: int,
    wishes: Wishes,
    save: Callable[[], None],
    on_bad_images: Callable[[list[tuple[int, str]]], None],
) -> dict[str, float]:
    """Run the rest of the epoch at `place`, which is moved along.

    Args:
        wishes: asked after each step.
        save: saves the run as it is at `place`.

    Returns:
        loss, top1 (of the augmented images, while training), lr (of the last step), images_per_second, seconds.

    Raises:
        NotFinite: naming epoch, step and learning rate; noticed at log steps, and before anything is saved.
        Stopped: by a wish; `place` says after which step.
    """
    loader, epoch = learner.loader, place.epoch
    device = next(learner.model.parameters()).device
    learner.model.train()
    learner.objective.set_epoch(epoch)
    sums = _Sums(place, device)
    started = time.perf_counter() - place.seconds
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
        last = place.step == loader.steps_per_epoch
        wish = wishes.agreed(last=last)
        if place.step % log_every == 0 or last or wish:
            place.seconds = time.perf_counter() - started
            _raise_if_not_finite(sums.look(), epoch, learner)
            bar.set_postfix(loss=f'{place.loss_sum / place.num_images:.3f}')
            _log_when_piped(bar, place, loader.steps_per_epoch)
        if wish == Wish.SAVE:
            save()
        elif wish.stops:
            raise Stopped(wish)
    return {
        'loss': place.loss_sum / place.num_images,
        'top1': place.num_right / place.num_images,
        'lr': learner.schedule(place.epoch * loader.steps_per_epoch + place.step - 1),
        'images_per_second': place.num_images / place.seconds,
        'seconds': place.seconds,
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
    if step >= 0:
        raise_not_finite('the loss is', epoch, step, learner)


def raise_not_finite(what: str, epoch: int, step: int, learner: Learner) -> NoReturn:
    """Say that training has diverged, as was found after a step.

    Raises:
        NotFinite: always.
    """
    lr = learner.schedule(epoch * learner.loader.steps_per_epoch + step)
    raise NotFinite(
        f'{what} not finite from epoch {epoch + 1}, step {step + 1} on (learning rate {lr:g}); '
        'the last good checkpoint is kept. A lower OPTIMIZER.LR or a longer SCHEDULE.WARMUP_EPOCHS helps most often'
    )


def _log_when_piped(bar, place: Place, steps: int) -> None:
    """Say how far the epoch is where no bar can be drawn; once a log interval, and not at its very end."""
    if bar.disable and place.step < steps:
        loss = place.loss_sum / place.num_images
        LOGGER.info('epoch %d, step %d of %d: loss %s', place.epoch + 1, place.step, steps, _plain(loss))


def _plain(value: float) -> str:
    return f'{value:.4f}' if math.isfinite(value) else str(value)
