"""L-BFGS on the whole training set: an epoch fits the head to all stored features with its own regularization.

A run is a path of strengths, from weak to strong, each fit starting from the one before. The validation after each
epoch then chooses the strength: the latest epoch within one standard error of the best one is the strongest
regularization within one standard error (Hastie, Tibshirani and Friedman 2009, section 7.10).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from lib.classifier.linear import LinearClassifier
from lib.dataset.pipeline import Batch
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.loss.targets import Targets
from lib.runtime.seeding import Purpose, torch_seed
from lib.trainer.forward import LossScale, ModelOutput
from lib.trainer.mixing.base import MixedBatch
from lib.trainer.objective import Objective
from lib.trainer.step import StepResult
from lib.trainer.stop_signal import StopController, StopRequested
from lib.trainer.train_state import TrainState


class _Moments(NamedTuple):
    """Sums over the features of all ranks.

    Attributes:
        mean: (num_features,) float32.
        scale: root of the total variance, the mean squared distance to the mean; a scalar.
        normalizer: denominator of the loss, a scalar.
        num_rows: features, over all views and ranks.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    normalizer: torch.Tensor
    num_rows: int


@dataclass
class LBFGSStep:
    """Callable that minimizes mean loss + lambda / 2 |W|^2 over all training features, as the one step of an epoch.

    A linear classifier is fitted to centered features, divided by the root of their total variance s^2: lambda then
    means the same for every backbone, and few iterations are needed. On the features as they are it is lambda s^2, and
    scikit-learn's C is 1 / (n lambda s^2). The bias is not regularized. The logits of a cosine classifier are limited
    by its scale, and do not depend on |W|, so lambda is 0 and the epochs continue one fit.

    Attributes:
        state: its optimizer is a torch.optim.LBFGS over the classifier, whose state does not outlive an epoch.
        objective: minimized; without auxiliary loss, its head takes logits.
        schedule: epoch -> lambda.
        blocks: yields this rank's part of the training features, a block in memory at a time.
        class_factors: epoch -> (num_classes,) weights of the images of each class, for samplers that do not draw each
            image once; None: all 1.
        seed: seed of the run, for losses that sample; they draw the same in every evaluation.
        group: ranks that share the training features.
        stop: ends a fit, which may take hours; None: nothing does. The classifier is then that of the epoch's start.
    """

    state: TrainState
    objective: Objective
    schedule: Callable[[int], float]
    blocks: Callable[[], Iterable[Batch]]
    class_factors: Callable[[int], torch.Tensor] | None = None
    seed: int = 0
    group: ProcessGroup = SINGLE_PROCESS
    stop: StopController | None = None
    rate_name: ClassVar[str] = 'lambda'

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch (from 0) for losses that depend on it."""
        self.objective.set_epoch(epoch)

    def __call__(self, mixed: MixedBatch, global_step: int) -> StepResult:
        """Fit the classifier, starting from its current weights; `global_step` is the epoch, and `mixed` not used.

        Raises:
            StopRequested: `stop` ends the fit; nothing has changed.
        """
        parameters = list(self.state.model.classifier.parameters())
        before = [parameter.detach().clone() for parameter in parameters]
        try:
            return self._fit(global_step)
        except StopRequested:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
            raise
        finally:
            self.state.optimizer.zero_grad()
            self.state.optimizer.state.clear()  # so a resumed run starts its next epoch as this one would

    def _fit(self, epoch: int) -> StepResult:
        classifier, optimizer = self.state.model.classifier, self.state.optimizer
        moments = self._moments(epoch)
        decay = self.schedule(epoch) if isinstance(classifier, LinearClassifier) else 0.0
        if isinstance(classifier, LinearClassifier):
            _to_standardized(classifier, moments)

        def evaluate() -> float:
            if self.stop is not None:
                self.stop.check_together()
            optimizer.zero_grad()
            loss, _ = self._evaluate(moments, epoch, with_gradient=True)
            weight = classifier.weight
            for parameter in classifier.parameters():
                assert parameter.grad is not None
                parameter.grad = self.group.all_reduce(parameter.grad)
                if parameter is weight:
                    parameter.grad.add_(weight.detach(), alpha=decay)
            return float(self.group.all_reduce(loss) + decay / 2 * weight.detach().square().sum())

        optimizer.state.clear()
        optimizer.step(evaluate)
        with torch.no_grad():
            result = StepResult(*self._evaluate(moments, epoch, with_gradient=False))
        if isinstance(classifier, LinearClassifier):
            _from_standardized(classifier, moments)
        for parameter in classifier.parameters():
            self.group.broadcast(parameter.data)  # in case the ranks' processors round differently
        return result

    def _evaluate(self, moments: _Moments, epoch: int, *, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this rank's part of the loss, and its correct predictions; accumulate the gradient of the loss."""
        classifier, device = self.state.model.classifier, self.state.device
        loss_sum = torch.zeros((), device=device)
        num_right = torch.zeros((), dtype=torch.int64, device=device)
        torch.manual_seed(torch_seed(self.seed, Purpose.DROPOUT, epoch, self.group.rank))
        is_linear = isinstance(classifier, LinearClassifier)
        for batch in self._checked_blocks():
            targets = self._targets(batch, epoch)
            # Not through the model, which would compute the logits in the precision of training.
            inputs = (batch.images - moments.mean).div_(moments.scale) if is_linear else batch.images
            output = ModelOutput(classifier(inputs), batch.images, None)
            scale = LossScale(moments.normalizer, len(batch.labels) / moments.num_rows, 0, (len(batch.labels),))
            loss, predicted, _ = self.objective(output, targets, batch.images, scale)
            if with_gradient:
                loss.backward()
            loss_sum += loss.detach()
            num_right += (predicted == targets.hard).sum()
        return loss_sum, num_right

    def _checked_blocks(self) -> Iterator[Batch]:
        for batch in self.blocks():
            if self.stop is not None:
                self.stop.check()  # a pass over all features may take minutes
            yield batch

    def _targets(self, batch: Batch, epoch: int) -> Targets:
        weights = batch.weights
        if self.class_factors is not None:
            factors = self.class_factors(epoch)[batch.labels]
            weights = factors if weights is None else factors * weights
        return Targets(batch.labels, weights=weights)

    @torch.no_grad()
    def _moments(self, epoch: int) -> _Moments:
        """Compute the moments of the features by one pass, in float64 on the CPU."""
        width = self.state.model.num_features
        sums = torch.zeros(width + 3, dtype=torch.float64)
        for batch in self._checked_blocks():
            features = batch.images.cpu().double()
            sums[:width] += features.sum(dim=0)
            sums[width] += features.square().sum()
            sums[width + 1] += len(features)
            sums[width + 2] += self.objective.normalizer(self._targets(batch, epoch)).cpu()
        sums = self.group.all_reduce(sums)
        num_rows = sums[width + 1]
        mean = sums[:width] / num_rows
        variance = (sums[width] / num_rows - mean.square().sum()).clamp_min(1e-12)
        device = self.state.device
        return _Moments(
            mean.float().to(device),
            variance.sqrt().float().to(device),
            sums[width + 2].float().to(device),
            int(num_rows),
        )


@torch.no_grad()
def _to_standardized(classifier: LinearClassifier, moments: _Moments) -> None:
    """Change weight and bias so that standardized features have the logits of the features as they are."""
    classifier.bias.add_(classifier.weight @ moments.mean)
    classifier.weight.mul_(moments.scale)


@torch.no_grad()
def _from_standardized(classifier: LinearClassifier, moments: _Moments) -> None:
    classifier.weight.div_(moments.scale)
    classifier.bias.sub_(classifier.weight @ moments.mean)


def regularization_path(first: float) -> Callable[[int], float]:
    """Return epoch -> lambda: `first` in epoch 0, and the square root of 10 times more in each later one."""
    return lambda epoch: first * 10 ** (epoch / 2)
