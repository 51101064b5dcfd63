"""What classifier, loss and optimiser take, by running them on tensors without memory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lib.loss.average import AverageLoss
from lib.loss.targets import Targets
from lib.model import Recognizer
from lib.plan.live import LiveBytes, into_memoryless, memoryless, num_bytes


@dataclass(frozen=True)
class HeadCost:
    """Bytes of a classifier and its loss, for some images and classes.

    Attributes:
        parameters: of the classifier.
        gradients: of those that are trained.
        peak: the most that is there beside parameters and features, new gradients included.
        kept: what of it is still there on the way back through the backbone: gradients, logits.
    """

    parameters: int
    gradients: int
    peak: int
    kept: int


def head_cost(model: Recognizer, loss: AverageLoss, num_features: int, num_images: int) -> HeadCost:
    """Return what a recogniser's classifier and the loss take for features (num_images, num_features).

    The recogniser, on the meta device, is in train mode; logits stay until the step is over.
    """
    with memoryless():
        into_memoryless(model.classifier)
        into_memoryless(loss)
        features = torch.empty(num_images, num_features, requires_grad=True)
        targets = Targets(torch.empty(num_images, dtype=torch.int64))
        parameters = list(model.classifier.parameters())
        known = [*parameters, *model.classifier.buffers(), *loss.buffers(), features]
        with LiveBytes(known) as live:
            logits = model.classify(features)
            total = loss.total(logits, targets, features) / loss.divisor(targets)
            total.backward()
        return HeadCost(
            parameters=num_bytes([*parameters, *model.classifier.buffers()]),
            gradients=num_bytes(parameter for parameter in parameters if parameter.requires_grad),
            peak=live.peak,
            kept=live.now,
        )


@dataclass(frozen=True)
class OptimizerCost:
    """Bytes of an optimiser: what it keeps, and what a step takes beside that."""

    state: int
    extra: int


def optimizer_cost(
    model: Recognizer, create: Callable[[Recognizer], torch.optim.Optimizer]
) -> OptimizerCost:
    """Return what the optimiser that `create` makes for a recogniser takes, all gradients being there."""
    with memoryless():
        into_memoryless(model)
        optimizer = create(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        known = [*model.parameters(), *(parameter.grad for parameter in trained)]
        with LiveBytes(known) as live:
            optimizer.step()
            state = live.now
            live.after.clear()
            optimizer.step()
        return OptimizerCost(state, live.peak - state)
