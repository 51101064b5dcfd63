"""One training step: the gradients of a batch in micro-batches, clipping, the optimizer, the EMA.

Nothing in a step waits for the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from lib.distributed.parallel import average_gradients, averages_gradients, skip_gradient_sync, without_gradient_sync
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.runtime.device import seed_generators
from lib.runtime.seeding import Purpose, torch_seed
from lib.trainer.forward import LossScale, ModelOutput
from lib.trainer.microbatch import MicroBatches, whole_batch
from lib.trainer.mixing.base import MixedBatch
from lib.trainer.objective import Objective
from lib.trainer.train_state import TrainState


class StepResult(NamedTuple):
    """The result of a step on this rank.

    Attributes:
        loss: scalar, this rank's part of the batch's loss.
        num_right: scalar, number of correct predictions.
        margins: (images of this rank,) of the labels; None if the head does not compute them.
        correct: (images of this rank,) bool, predictions that are the label; None without margins.
    """

    loss: torch.Tensor
    num_right: torch.Tensor
    margins: torch.Tensor | None = None
    correct: torch.Tensor | None = None


class SingleValueBatchNorm(UserError):
    """A step has one value per channel, of which BatchNorm cannot compute a variance."""


@dataclass
class TrainStep:
    """Callable that takes one step: (mixed batch, global step) -> StepResult.

    Attributes:
        state: model, optimizer, EMA and scaler, which the step changes.
        forward: a TrainingForward of the model, possibly compiled or wrapped for several devices.
        objective: minimized.
        schedule: global step -> learning rate.
        seed: seed of the run; dropout, drop path and sampled classes are a function of it and the global step.
        micro_batches: slices of the batch that are computed one after the other; None: the whole batch at once.
        clip: clips the gradients in place; None: off.
        group: ranks that share the batch.
        head_epochs: first epochs, in which the backbone is constant.
    """

    state: TrainState
    forward: nn.Module
    objective: Objective
    schedule: Callable[[int], float]
    seed: int
    micro_batches: MicroBatches | None = None
    clip: Callable[[], object] | None = None
    group: ProcessGroup = SINGLE_PROCESS
    head_epochs: int = 0
    rate_name: ClassVar[str] = 'lr'

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch (from 0) for all that depends on it."""
        self.objective.set_epoch(epoch)
        self.state.model.train_head_only(epoch < self.head_epochs)

    def __call__(self, mixed: MixedBatch, global_step: int) -> StepResult:
        """Update the weights by this rank's images of a batch.

        Raises:
            SingleValueBatchNorm: the batch is too small for BatchNorm.
        """
        optimizer, scaler = self.state.optimizer, self.state.scaler
        for param_group in optimizer.param_groups:
            param_group['lr'] = self.schedule(global_step) * param_group.get('lr_scale', 1.0)
        optimizer.zero_grad(set_to_none=True)
        result = self._backward(mixed, global_step)
        model = self.state.model
        if self.group.world_size > 1 and (model.trains_head_only or not averages_gradients(self.forward)):
            # The rows of a sharded classifier differ between the ranks; those of a sharded backbone are averaged.
            own = set(model.classifier.parameters()) if model.is_sharded else set()
            average_gradients((weight for weight in model.parameters() if weight not in own), self.group)
        if self.clip is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            self.clip()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if self.state.ema is not None:
            self.state.ema.update()
        return result

    def _backward(self, mixed: MixedBatch, global_step: int) -> StepResult:
        """Accumulate the gradients of the micro-batches."""
        group, scaler = self.group, self.state.scaler
        micro_batches = self.micro_batches or whole_batch(len(mixed.images))
        normalizer = group.all_reduce(self.objective.normalizer(mixed.targets))
        seed = torch_seed(self.seed, Purpose.HEAD, global_step)
        results = []
        for number, rows in enumerate(micro_batches.slices):
            # Dropout and drop path depend on no earlier micro-batch, so a resumed run draws the same.
            drawn = torch_seed(self.seed, Purpose.DROPOUT, global_step, number * group.world_size + group.rank)
            seed_generators(drawn, self.state.device)
            fraction = (rows.stop - rows.start) / micro_batches.num_images
            scale = LossScale(normalizer, fraction, seed, micro_batches.sizes[number])
            with skip_gradient_sync(self.forward, number + 1 < len(micro_batches.slices)):
                micro_batch = mixed.select(rows)
                output = self._forward(micro_batch)
                loss, predicted, margins = self.objective(output, micro_batch.targets, micro_batch.images, scale)
                # DistributedDataParallel averages the gradients of the ranks; the loss is their sum.
                total = loss * group.world_size
                (total if scaler is None else scaler.scale(total)).backward()
            correct = predicted == micro_batch.targets.hard
            per_image = (None, None) if margins is None else (margins, correct)
            results.append(StepResult(loss.detach(), correct.sum(), *per_image))
        return results[0] if len(results) == 1 else _total(results)

    def _forward(self, mixed: MixedBatch) -> ModelOutput:
        try:
            head_only = self.state.model.trains_head_only
            forward = without_gradient_sync(self.forward) if head_only else self.forward
            return forward(mixed.images, mixed.lam, mixed.stage)
        except ValueError as error:
            if 'more than 1 value per channel' not in str(error):
                raise
            raise SingleValueBatchNorm(
                f'BatchNorm needs more than one value per channel, but a step has {len(mixed.images)} images of '
                f'{mixed.images.shape[-1]} px'
            ) from None


def _total(results: Sequence[StepResult]) -> StepResult:
    """Return the result of a batch from those of its micro-batches."""
    losses, counts, margins, correct = zip(*results, strict=True)
    per_image = () if margins[0] is None else (torch.cat(margins), torch.cat(correct))
    return StepResult(torch.stack(losses).sum(), torch.stack(counts).sum(), *per_image)
