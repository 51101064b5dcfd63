"""Memory and arithmetic of backbone, classifier with loss, and optimizer, measured on tensors without memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from lib.backbone.tuning import blocks_of
from lib.loss.chunked import chunked_loss
from lib.loss.sampled_classes import take_rows
from lib.loss.sharded_logits import ClassSubset, ShardedLogits
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.plan.memory_tracker import MemoryTracker, into_memoryless, memoryless, num_bytes

# Two batch sizes are enough: the size of every tensor of a step is linear in the number of images.
_FEW, _MORE = 2, 4


@dataclass(frozen=True)
class LinearCost:
    """Bytes as a linear function of the number of images: fixed + per_image * images, int64 arrays (steps,) or ()."""

    fixed: np.ndarray
    per_image: np.ndarray

    def at(self, num_images: int) -> int:
        """Return the bytes for a number of images; the maximum over the steps."""
        return int(np.max(self.fixed + self.per_image * num_images))


@dataclass(frozen=True)
class BackboneCost:
    """Memory and arithmetic of a backbone in training.

    Attributes:
        num_parameters: number of trainable and frozen weights.
        state: bytes of parameters and buffers (BatchNorm statistics).
        parameters: bytes of the parameters, without those of an embedding.
        largest_block: bytes of the parameters of the largest block.
        outside: bytes of the parameters that are in no block.
        gradients: bytes of gradients; 0 if frozen.
        saved: bytes alive after the forward pass, for backward: activations, and half-precision copies of weights.
        forward: bytes alive after every operation of the forward pass.
        backward: bytes alive after every operation of the backward pass, without the gradients of parameters.
        flops: floating-point operations per image, forward and backward.
    """

    num_parameters: int
    state: int
    parameters: int
    largest_block: int
    outside: int
    gradients: int
    saved: LinearCost
    forward: LinearCost
    backward: LinearCost
    flops: int


@dataclass(frozen=True)
class ClassifierCost:
    """Bytes of a classifier with its loss, for a number of images and classes.

    Attributes:
        parameters: bytes of parameters and buffers of the classifier.
        gradients: bytes of the gradients of trainable parameters.
        peak: the maximum beyond parameters and features, new gradients included.
        retained: the part of it that stays during the backward pass of the backbone: gradients, logits.
    """

    parameters: int
    gradients: int
    peak: int
    retained: int

    def extrapolate(self, start: 'ClassifierCost', next_cost: 'ClassifierCost', times: float) -> 'ClassifierCost':
        """Return this cost plus `times` the difference between `next_cost` and `start`."""
        terms = zip(astuple(self), astuple(start), astuple(next_cost), strict=True)
        return ClassifierCost(*(round(cost + (larger - smaller) * times) for cost, smaller, larger in terms))


@dataclass(frozen=True)
class OptimizerCost:
    """Bytes of an optimizer: its state, and the temporary memory of a step beyond it."""

    state: int
    temporary: int


def backbone_cost(model: Recognizer, image_size: int) -> BackboneCost:
    """Return the cost of the backbone of a recognizer on the meta device, for images (3, image_size, image_size).

    It runs in train mode, in the precision of training.
    """
    with memoryless():
        into_memoryless(model)
        model.train()
        parameters = list(model.extractor.parameters())
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trainable:
            # Gradients exist already, as in all but the first micro-batch: new ones are added in place.
            parameter.grad = torch.empty_like(parameter)
        blocks = [num_bytes(block.parameters()) for block in blocks_of(model.backbone)]
        few, more = _run(model, image_size, _FEW), _run(model, image_size, _MORE)
        return BackboneCost(
            num_parameters=sum(parameter.numel() for parameter in parameters),
            state=num_bytes([*parameters, *model.extractor.buffers()]),
            parameters=num_bytes(model.backbone.parameters()),
            largest_block=max(blocks, default=0),
            outside=num_bytes(model.backbone.parameters()) - sum(blocks),
            gradients=num_bytes(trainable),
            saved=_fit_line(few[0], more[0]),
            forward=_fit_line(few[1], more[1]),
            backward=_fit_line(few[2], more[2]),
            flops=_flops(model, image_size),
        )


def _run(model: Recognizer, image_size: int, num_images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bytes alive after the forward pass, and after every operation of the forward and the backward pass."""
    images = _images(image_size, num_images)
    existing = [*model.parameters(), *model.buffers(), images]
    existing += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    with MemoryTracker(existing) as tracker:
        features = model.features(images)
        saved, forward = tracker.current, tracker.series()
        tracker.restart()
        tracker.history.append(saved)
        if features.requires_grad:
            features.backward(torch.empty_like(features))
        return np.array(saved), forward, tracker.series()


def _flops(model: Recognizer, image_size: int) -> int:
    with FlopCounterMode(display=False) as counter:
        features = model.features(_images(image_size, _FEW))
        if features.requires_grad:
            features.backward(torch.empty_like(features))
    return counter.get_total_flops() // _FEW


def _images(image_size: int, num_images: int) -> torch.Tensor:
    images = torch.empty(num_images, 3, image_size, image_size)
    return images.to(memory_format=torch.channels_last)


def _fit_line(few: np.ndarray, more: np.ndarray) -> LinearCost:
    if few.shape != more.shape:  # different numbers of operations: only the peaks are comparable
        few, more = few.max(), more.max()
    per_image = (more - few) // (_MORE - _FEW)
    return LinearCost(few - per_image * _FEW, per_image)


def classifier_cost(model: Recognizer, loss: WeightedLoss, num_features: int, num_images: int) -> ClassifierCost:
    """Return the cost of classifier and loss for features (num_images, num_features), with all logits at once.

    The recognizer is on the meta device, in train mode; logits stay until the step is over.
    """
    with _tracked(model.classifier, num_images, num_features) as (features, tracker):
        logits = model.classify(features)
        before_loss = tracker.current
        # An arbitrary gradient of the logits: at this moment the loss has computed it.
        logits.backward(torch.empty_like(logits))
    in_loss = before_loss + _peak_of_loss(loss, logits.shape, num_features)
    return _cost(model.classifier, tracker, in_loss)


def chunked_classifier_cost(
    model: Recognizer, loss: WeightedLoss, num_features: int, num_images: int, *, chunk: int, num_sampled: int
) -> ClassifierCost:
    """Return the cost of classifier and loss computed over chunks: no logits stay, gradients come in the forward pass.

    Args:
        chunk: images per chunk.
        num_sampled: number of the classifier's classes that are used.
    """
    before_loss = []

    def chunk_loss(logits: ShardedLogits, *_: object) -> torch.Tensor:
        before_loss.append(tracker.current)
        return logits.values.sum()  # its gradient takes no memory; the memory of the loss is added below

    def total(features: torch.Tensor) -> torch.Tensor:
        x, weight, bias = model.factors(features)
        if num_sampled < len(weight):
            rows = torch.empty(num_sampled, dtype=torch.int64)
            weight, bias = take_rows(weight, rows), None if bias is None else take_rows(bias, rows)
        return chunked_loss(x, weight, bias, chunk_loss, chunk=chunk)[0]

    with _tracked(model.classifier, num_images, num_features) as (features, tracker):
        total(features).backward(torch.tensor(1.0))
    in_loss = max(before_loss) + _peak_of_loss(loss, torch.Size((chunk, num_sampled)), num_features, overwrite=True)
    return _cost(model.classifier, tracker, in_loss)


@contextmanager
def _tracked(
    classifier: torch.nn.Module, num_images: int, num_features: int
) -> Iterator[tuple[torch.Tensor, MemoryTracker]]:
    """Yield features and a tracker of the memory beyond these and the classifier, all without memory."""
    with memoryless():
        into_memoryless(classifier)
        features = torch.empty(num_images, num_features, requires_grad=True)
        with MemoryTracker([*classifier.parameters(), *classifier.buffers(), features]) as tracker:
            yield features, tracker


def _cost(classifier: torch.nn.Module, tracker: MemoryTracker, in_loss: int) -> ClassifierCost:
    parameters = list(classifier.parameters())
    return ClassifierCost(
        parameters=num_bytes([*parameters, *classifier.buffers()]),
        gradients=num_bytes(parameter for parameter in parameters if parameter.requires_grad),
        peak=max(tracker.peak, in_loss),
        retained=tracker.current,
    )


def _peak_of_loss(loss: WeightedLoss, shape: torch.Size, num_features: int, *, overwrite: bool = False) -> int:
    """Return the peak bytes of a loss, forward and backward, beyond logits of a shape; their gradient is included.

    Runs on the meta device, where the loss processes all images at once, as on GPUs. On a CPU it processes blocks.
    """
    with torch.device('meta'):
        loss = loss.to('meta')
        values, features = torch.empty(shape, requires_grad=True), torch.empty(shape[0], num_features)
        logits = ShardedLogits(values, ClassSubset(range(shape[1]), shape[1]), overwrite=True) if overwrite else values
        targets = Targets(torch.empty(shape[0], dtype=torch.int64))
        with MemoryTracker([values, features, *loss.buffers()]) as tracker:
            (loss.total(logits, targets, features) / loss.normalizer(targets)).backward()
    return tracker.peak


def optimizer_cost(model: Recognizer, create: Callable[[Recognizer], torch.optim.Optimizer]) -> OptimizerCost:
    """Return the cost of the optimizer that `create` returns for a recognizer, with all gradients allocated."""
    with memoryless():
        into_memoryless(model)
        optimizer = create(model)
        gradients = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
                gradients.append(parameter.grad)
        with MemoryTracker([*model.parameters(), *gradients]) as tracker:
            optimizer.step()
            state = tracker.current
            tracker.restart()
            optimizer.step()
        return OptimizerCost(state, tracker.peak - state)
