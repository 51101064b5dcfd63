"""One epoch of training: the steps, and nothing between them that waits for the device."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import nn

from lib.dataset.loader import TrainLoader
from lib.distributed.parallel import skip_gradient_sync
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.model import Recognizer
from lib.optim.ema import ModelEMA
from lib.runtime.log import LOGGER, progress_bar
from lib.runtime.seeding import Purpose, torch_seed
from lib.trainer.checkpointing.state import TrainProgress
from lib.trainer.forward import LossScale, ModelOutput
from lib.trainer.microbatch import MicroBatches, whole_batch
from lib.trainer.mixing.base import MixedBatch, Mixer
from lib.trainer.objective import Objective
from lib.trainer.running_metrics import RunningMetrics, StepResult
from lib.trainer.stop_signal import Action, StopController, StopRequested


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
    parts: MicroBatches | None = None
    group: ProcessGroup = SINGLE_PROCESS
    scaler: torch.amp.GradScaler | None = None
    clip: Callable[[], object] | None = None
    average: ModelEMA | None = None


def train_epoch(
    learner: Learner,
    place: TrainProgress,
    *,
    log_every: int,
    wishes: StopController,
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
    sums, bad = RunningMetrics(place, learner.group, device), []
    started = time.perf_counter() - place.seconds
    batches = loader.batches(epoch, place.step)
    bar = progress_bar(batches, total=loader.steps_per_epoch, start=place.step, label=f'epoch {epoch + 1}')
    for batch in bar:
        global_step = epoch * loader.steps_per_epoch + place.step
        mixed = learner.mixer(batch.images, batch.labels, epoch=epoch, first_slot=loader.first_slot(place.step))
        sums.add(_step(learner, mixed, global_step), loader.batch_size, place.step)
        bad += batch.bad
        place.step += 1
        last = place.step == loader.steps_per_epoch
        wish = wishes.poll(last=last)
        looks = place.step % log_every == 0 or last or bool(wish)
        if looks or (bad and learner.group.world_size == 1):
            on_bad_images([found for part in learner.group.all_gather_objects(bad) for found in part])
            bad.clear()
        if looks:
            place.seconds = time.perf_counter() - started
            _raise_if_not_finite(sums.look(), epoch, learner)
            bar.set_postfix(loss=f'{place.loss_sum / place.num_images:.3f}')
            _log_when_piped(bar, place, loader.steps_per_epoch)
        if wish == Action.SAVE:
            save()
        elif wish.stops:
            raise StopRequested(wish)
    return {
        'loss': place.loss_sum / place.num_images,
        'top1': place.num_right / place.num_images,
        'lr': learner.schedule(place.epoch * loader.steps_per_epoch + place.step - 1),
        'images_per_second': place.num_images / place.seconds,
        'seconds': place.seconds,
    }


def _step(learner: Learner, mixed: MixedBatch, global_step: int) -> StepResult:
    for param_group in learner.optimizer.param_groups:
        param_group['lr'] = learner.schedule(global_step) * param_group.get('lr_scale', 1.0)
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


def _gradients(learner: Learner, mixed: MixedBatch, global_step: int) -> StepResult:
    """Add up the gradients of a batch, part by part."""
    group, num_images = learner.group, len(mixed.images)
    parts = learner.parts or whole_batch(num_images)
    normalizer = group.all_reduce(learner.objective.normalizer(mixed.targets))
    seed = torch_seed(learner.seed, Purpose.HEAD, global_step)
    done = []
    for number, rows in enumerate(parts.slices):
        # Dropout and drop path of a part depend on nothing that came before it, so a resumed run draws the same.
        torch.manual_seed(
            torch_seed(learner.seed, Purpose.DROPOUT, global_step, number * group.world_size + group.rank)
        )
        share = LossScale(normalizer, (rows.stop - rows.start) / parts.num_images, seed, parts.sizes[number])
        with skip_gradient_sync(learner.forward, number + 1 < len(parts.slices)):
            part = mixed.part(rows)
            computed = learner.objective(_forward(learner, part), part.targets, part.images, share)
            # Where ranks share a model, its gradient is the mean over them of what each one gives.
            loss = computed.loss * group.world_size
            (loss if learner.scaler is None else learner.scaler.scale(loss)).backward()
        done.append(StepResult(computed.loss.detach(), (computed.predicted == part.targets.hard).sum()))
    return done[0] if len(done) == 1 else StepResult(*(torch.stack(values).sum() for values in zip(*done, strict=True)))


def _forward(learner: Learner, mixed: MixedBatch) -> ModelOutput:
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


def _log_when_piped(bar, place: TrainProgress, steps: int) -> None:
    """Say how far the epoch is where no bar can be drawn; once a log interval, and not at its very end."""
    if bar.disable and place.step < steps:
        loss = place.loss_sum / place.num_images
        LOGGER.info('epoch %d, step %d of %d: loss %s', place.epoch + 1, place.step, steps, _plain(loss))


def _plain(value: float) -> str:
    return f'{value:.4f}' if math.isfinite(value) else str(value)
