"""What classifier, loss and optimiser take, by running them on tensors without memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass

import torch

from lib.loss.chunked import chunked_loss
from lib.loss.sampled_classes import take_rows
from lib.loss.sharded_logits import ClassSubset, ShardedLogits
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.plan.memory_tracker import MemoryTracker, into_memoryless, memoryless, num_bytes


@dataclass(frozen=True)
class ClassifierCost:
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

    def beyond(self, some: 'ClassifierCost', more: 'ClassifierCost', times: float) -> 'ClassifierCost':
        """Return it with so many times what `more` takes beyond `some`."""
        terms = zip(astuple(self), astuple(some), astuple(more), strict=True)
        return ClassifierCost(*(round(own + (larger - smaller) * times) for own, smaller, larger in terms))


def classifier_cost(model: Recognizer, loss: WeightedLoss, num_features: int, num_images: int) -> ClassifierCost:
    """Return what a recogniser's classifier and the loss take for features (num_images, num_features).

    The recogniser, on the meta device, is in train mode; logits stay until the step is over.
    """
    with _watched(model.classifier, num_images, num_features) as (features, live):
        logits = model.classify(features)
        before_loss = live.now
        # Its gradient is given: at that moment the loss has made it.
        logits.backward(torch.empty_like(logits))
    in_loss = before_loss + _peak_of_loss(loss, logits.shape, num_features)
    return _cost(model.classifier, live, in_loss)


def chunked_classifier_cost(
    model: Recognizer, loss: WeightedLoss, num_features: int, num_images: int, *, chunk: int, num_compared: int
) -> ClassifierCost:
    """Return what they take when computed together: no logits stay, and gradients are there before the way back.

    Args:
        chunk: images at a time.
        num_compared: classes, of those of the classifier.
    """
    before_loss = []

    def loss_of(logits: ShardedLogits, *_: object) -> torch.Tensor:
        before_loss.append(live.now)
        return logits.values.sum()  # whose gradient takes no memory: that of the loss is counted below

    def total_of(features: torch.Tensor) -> torch.Tensor:
        x, weight, bias = model.factors(features)
        if num_compared < len(weight):
            drawn = torch.empty(num_compared, dtype=torch.int64)
            weight, bias = take_rows(weight, drawn), None if bias is None else take_rows(bias, drawn)
        return chunked_loss(x, weight, bias, loss_of, chunk=chunk)[0]

    with _watched(model.classifier, num_images, num_features) as (features, live):
        total_of(features).backward(torch.tensor(1.0))
    in_loss = max(before_loss) + _peak_of_loss(loss, torch.Size((chunk, num_compared)), num_features, overwrites=True)
    return _cost(model.classifier, live, in_loss)


@contextmanager
def _watched(
    classifier: torch.nn.Module, num_images: int, num_features: int
) -> Iterator[tuple[torch.Tensor, MemoryTracker]]:
    """Watch what a block takes beside a classifier without memory and its features; give those, and the watch."""
    with memoryless():
        into_memoryless(classifier)
        features = torch.empty(num_images, num_features, requires_grad=True)
        with MemoryTracker([*classifier.parameters(), *classifier.buffers(), features]) as live:
            yield features, live


def _cost(classifier: torch.nn.Module, live: MemoryTracker, in_loss: int) -> ClassifierCost:
    parameters = list(classifier.parameters())
    return ClassifierCost(
        parameters=num_bytes([*parameters, *classifier.buffers()]),
        gradients=num_bytes(parameter for parameter in parameters if parameter.requires_grad),
        peak=max(live.peak, in_loss),
        kept=live.now,
    )


def _peak_of_loss(loss: WeightedLoss, shape: torch.Size, num_features: int, *, overwrites: bool = False) -> int:
    """Return the most bytes that a loss takes there and back beside logits of a shape, their gradient included.

    On the meta device, where it goes over all images at once, as on GPUs. On a CPU it takes a few at a time.
    """
    with torch.device('meta'):
        loss = loss.to('meta')
        values, features = torch.empty(shape, requires_grad=True), torch.empty(shape[0], num_features)
        logits = ShardedLogits(values, ClassSubset(range(shape[1]), shape[1]), overwrite=True) if overwrites else values
        targets = Targets(torch.empty(shape[0], dtype=torch.int64))
        with MemoryTracker([values, features, *loss.buffers()]) as live:
            (loss.total(logits, targets, features) / loss.normalizer(targets)).backward()
    return live.peak


@dataclass(frozen=True)
class OptimizerCost:
    """Bytes of an optimiser: what it keeps, and what a step takes beside that."""

    state: int
    extra: int


def optimizer_cost(model: Recognizer, create: Callable[[Recognizer], torch.optim.Optimizer]) -> OptimizerCost:
    """Return what the optimiser that `create` makes for a recogniser takes, all gradients being there."""
    with memoryless():
        into_memoryless(model)
        optimizer = create(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        known = [*model.parameters(), *(parameter.grad for parameter in trained)]
        with MemoryTracker(known) as live:
            optimizer.step()
            state = live.now
            live.after.clear()
            optimizer.step()
        return OptimizerCost(state, live.peak - state)
