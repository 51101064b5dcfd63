"""Strategies for a training step: the memory, communication and arithmetic of each, from the cheapest on."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from lib.plan.costs import BackboneCost, ClassifierCost, OptimizerCost

FLOAT_BYTES = 4  # of a float32 number
# Fraction of a device's memory that a plan may use; workspaces of kernels, fragmentation and CUDA itself need the rest.
USABLE = 0.9
# Numbers per image that every shard sends to the others: its label's logit and the log-sum-exp of its classes.
_SOFTMAX_STATISTICS = 2


@dataclass(frozen=True)
class StepSpec:
    """A training step to plan.

    Attributes:
        batch_size: images per step, over all devices.
        num_devices: devices that share the batch.
        num_classes, num_features, image_size: properties of the model; image_size in pixels.
        ema: a moving average of the weights is stored.
        num_centers: rows of the classifier per class.
    """

    batch_size: int
    num_devices: int
    num_classes: int
    num_features: int
    image_size: int
    ema: bool = False
    num_centers: int = 1

    @property
    def per_device_batch(self) -> int:
        """Return the images per device and step."""
        return -(-self.batch_size // self.num_devices)


@dataclass(frozen=True)
class Strategy:
    """How a step is computed.

    Attributes:
        micro_batch: images per device that go through the backbone at once (TRAIN.DEVICE_BATCH_SIZE).
        chunk: images per chunk of classifier and loss; 0: all (LOSS.CHUNK_IMAGES).
        sharded: each device holds a shard of the classes (MODEL.CLASSIFIER_SHARDED).
        sampled: fraction of the classes that a step uses (LOSS.SAMPLED_CLASSES).
        backbone_sharded: each device holds a part of the backbone's parameters (MODEL.BACKBONE_SHARDED).
    """

    micro_batch: int
    chunk: int = 0
    sharded: bool = False
    sampled: float = 1.0
    backbone_sharded: bool = False

    def num_rows(self, spec: StepSpec) -> int:
        """Return the number of classifier rows on a device."""
        return -(-spec.num_classes // spec.num_devices) if self.sharded else spec.num_classes

    def num_sampled(self, spec: StepSpec) -> int:
        """Return the number of these rows that a step uses."""
        return max(1, math.ceil(self.sampled * self.num_rows(spec)))

    def classifier_images(self, spec: StepSpec) -> int:
        """Return the images that a device classifies per micro-batch: those of all devices if sharded."""
        return self.micro_batch * spec.num_devices if self.sharded else self.micro_batch

    def num_micro_batches(self, spec: StepSpec) -> int:
        """Return the number of micro-batches per step."""
        return -(-spec.per_device_batch // self.micro_batch)


class Costs(Protocol):
    """The costs of the components of a step; see the functions of the same names in costs.py."""

    backbone: BackboneCost

    def classifier(self, num_images: int, num_rows: int) -> ClassifierCost: ...

    def chunked_classifier(self, num_images: int, num_rows: int, chunk: int, num_sampled: int) -> ClassifierCost: ...

    def optimizer(self, num_rows: int) -> OptimizerCost: ...


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of a device during a step, in bytes.

    Attributes:
        backbone, classifier: parameters and gradients.
        optimizer: its state.
        ema: the moving average of the weights.
        images: the batch, in uint8 and in float32.
        activations: saved for backward.
        logits: peak of classifier and loss beyond parameters and gradients.
        total: the peak; not all of the above are alive at that moment.
    """

    backbone: int
    classifier: int
    optimizer: int
    ema: int
    images: int
    activations: int
    logits: int
    total: int


def estimate_memory(strategy: Strategy, spec: StepSpec, costs: Costs) -> MemoryEstimate:
    """Return the peak memory of each device under a strategy.

    The peak is in one of four phases: forward pass of the backbone; classifier and loss, with all activations alive;
    backward pass; optimizer step. Gradients of the backbone count in all of them: micro-batches accumulate into them,
    and with several devices they are the buckets of the all-reduce. In validation, a sharded backbone is whole.
    """
    backbone, num_rows = costs.backbone, strategy.num_rows(spec)
    classifier = costs.classifier(2, num_rows)
    optimizer = costs.optimizer(num_rows)
    parts, whole = _sharded_parts(strategy, spec, backbone), backbone.parameters if strategy.backbone_sharded else 0
    state, gradients = backbone.state - parts.other_parameters, backbone.gradients - parts.other_gradients
    per_gradient = optimizer.state / max(1, backbone.gradients + classifier.gradients)
    optimizer_state = optimizer.state - round(per_gradient * parts.other_gradients)
    ema = state + classifier.parameters if spec.ema else 0
    pixels = 3 * spec.image_size**2
    images = spec.per_device_batch * pixels * (FLOAT_BYTES + 2)  # float32, and two uint8 batches: one is prefetched
    permanent = state + gradients + classifier.parameters + optimizer_state + ema + images
    # Accumulated gradients of earlier micro-batches, or all-reduce buckets, exist while new gradients are computed.
    is_accumulated = strategy.num_micro_batches(spec) > 1 or (spec.num_devices > 1 and not strategy.sharded)
    accumulated = classifier.gradients if is_accumulated else 0
    peak, retained = _classifier_peak(strategy, spec, costs)
    activations = backbone.saved.at(strategy.micro_batch)
    phases = (
        backbone.forward.at(strategy.micro_batch) + accumulated + parts.forward,
        activations + accumulated + peak + parts.between,
        backbone.backward.at(strategy.micro_batch) + accumulated + retained + parts.backward,
        classifier.gradients + optimizer.temporary,
        classifier.gradients + whole,
    )
    return MemoryEstimate(
        backbone=state + gradients,
        classifier=classifier.parameters + classifier.gradients,
        optimizer=optimizer_state,
        ema=ema,
        images=images,
        activations=activations,
        logits=peak - classifier.gradients,
        total=permanent + max(phases),
    )


class _ShardedParts(NamedTuple):
    """Bytes of a sharded backbone; all are 0 for another one.

    Attributes:
        other_parameters, other_gradients: on the other devices.
        forward, between, backward: what is whole in the forward pass, after it, and in the backward pass.
    """

    other_parameters: int = 0
    other_gradients: int = 0
    forward: int = 0
    between: int = 0
    backward: int = 0


def _sharded_parts(strategy: Strategy, spec: StepSpec, backbone: BackboneCost) -> _ShardedParts:
    if not strategy.backbone_sharded:
        return _ShardedParts()
    others = 1 - 1 / spec.num_devices
    forward = backbone.outside + 2 * backbone.largest_block
    gradients = round(forward * backbone.gradients / backbone.parameters)
    elsewhere = round(others * backbone.parameters), round(others * backbone.gradients)
    return _ShardedParts(*elsewhere, forward, backbone.outside, forward + gradients)


def _classifier_peak(strategy: Strategy, spec: StepSpec, costs: Costs) -> tuple[int, int]:
    """Return the peak bytes of classifier and loss, new gradients included, and what of it stays during backward."""
    num_images, num_rows = strategy.classifier_images(spec), strategy.num_rows(spec)
    if not (strategy.chunk or strategy.sharded or strategy.sampled < 1):
        cost = costs.classifier(num_images, num_rows)
        return cost.peak, cost.retained
    chunk = min(strategy.chunk, num_images) if strategy.chunk else num_images
    cost = costs.chunked_classifier(num_images, num_rows, chunk, strategy.num_sampled(spec))
    # The gathered features of all devices.
    gathered = FLOAT_BYTES * num_images * spec.num_features if strategy.sharded else 0
    return cost.peak + gathered, cost.retained


def list_strategies(
    spec: StepSpec, *, chunk: int, sampled: float, fits: Callable[[Strategy], bool], shard_backbone: bool = False
) -> Iterator[tuple[str, Strategy]]:
    """Yield names and strategies: first those that cost nothing, then those that cost time or change the method.

    Strategies with micro-batches use the largest that fit.

    Args:
        chunk, sampled: chunk size and sampled fraction of the strategies that have them.
        shard_backbone: list strategies with a sharded backbone, too.
    """
    whole = Strategy(spec.per_device_batch)
    yield 'plain', whole
    yield 'chunked', replace(whole, chunk=chunk)
    yield 'accumulated', _accumulated(whole, fits)
    yield 'accumulated, chunked', _accumulated(replace(whole, chunk=chunk), fits)
    if spec.num_devices > 1:
        sharded = replace(whole, sharded=True)
        yield 'sharded', sharded
        yield 'sharded, chunked', replace(sharded, chunk=chunk)
        yield 'sharded, accumulated', _accumulated(sharded, fits)
        yield 'sharded, accum., chunked', _accumulated(replace(sharded, chunk=chunk), fits)
        yield 'sharded, sampled', replace(sharded, sampled=sampled)
        yield 'sharded, sampled, accum.', _accumulated(replace(sharded, sampled=sampled), fits)
        if shard_backbone:
            whole, sharded = replace(whole, backbone_sharded=True), replace(sharded, backbone_sharded=True)
            yield 'backbone sharded', whole
            yield 'backbone sharded, accum.', _accumulated(whole, fits)
            yield 'both sharded', sharded
            yield 'both sharded, accum.', _accumulated(sharded, fits)
    else:
        yield 'sampled', replace(whole, sampled=sampled)
        yield 'sampled, accumulated', _accumulated(replace(whole, sampled=sampled), fits)


def _accumulated(strategy: Strategy, fits: Callable[[Strategy], bool]) -> Strategy:
    """Return the strategy with the fewest micro-batches that fit, of at least two images: halves, quarters, ..."""
    num_micro_batches, per_device_batch = 2, strategy.micro_batch
    while per_device_batch > 2:
        strategy = replace(strategy, micro_batch=max(2, -(-per_device_batch // num_micro_batches)))
        if strategy.micro_batch == 2 or fits(strategy):
            break
        num_micro_batches *= 2
    return strategy


@dataclass(frozen=True)
class Traffic:
    """Bytes that a device sends per step (and as many that it receives).

    Attributes:
        gradients: ring all-reduce of replicated gradients over W devices: 2 (W - 1) / W times their size; and what a
            sharded backbone gathers and sends.
        features: with a sharded classifier: all-gather of the features, and reduce-scatter of their gradients.
        statistics: softmax statistics of a sharded loss.
    """

    gradients: int
    features: int
    statistics: int

    @property
    def total(self) -> int:
        """Return the sum, bytes."""
        return self.gradients + self.features + self.statistics


def estimate_traffic(strategy: Strategy, spec: StepSpec, backbone: BackboneCost, classifier_gradients: int) -> Traffic:
    """Return the bytes that a device sends per step.

    Args:
        classifier_gradients: bytes, of the rows on a device.
    """
    num_others = spec.num_devices - 1
    ring = num_others / spec.num_devices
    # An all-reduce sends twice. Each micro-batch of a sharded backbone gathers the parameters for its forward pass, and
    # again for its backward pass, and sends the gradients once.
    of_backbone: float = 2 * backbone.gradients
    if strategy.backbone_sharded:
        of_backbone = strategy.num_micro_batches(spec) * (2 * backbone.parameters + backbone.gradients)
    gradients = of_backbone + (0 if strategy.sharded else 2 * classifier_gradients)
    if not strategy.sharded:
        return Traffic(round(ring * gradients), 0, 0)
    features = FLOAT_BYTES * spec.batch_size * spec.num_features
    # All-gather sends (W - 1) / W of the features; their gradients are all-reduced, then each device takes its slice.
    return Traffic(
        round(ring * gradients),
        round(3 * ring * features),
        num_others * FLOAT_BYTES * _SOFTMAX_STATISTICS * spec.batch_size,
    )


def estimate_flops(strategy: Strategy, spec: StepSpec, backbone: BackboneCost) -> int:
    """Return the floating-point operations of a device per step, 2 per multiply-add.

    Classifier: logits, and gradients of features and rows, each 2 * images * classes * centers * features.
    """
    classifier_images = spec.per_device_batch * spec.num_devices if strategy.sharded else spec.per_device_batch
    classifier = 6 * classifier_images * strategy.num_sampled(spec) * spec.num_centers * spec.num_features
    return spec.per_device_batch * backbone.flops + classifier


def estimate_seconds(
    traffic: Traffic, flops: int, *, flops_per_second: float, bytes_per_second: float
) -> tuple[float, float]:
    """Return the seconds of computation and of communication per step, without overlap."""
    return flops / flops_per_second, traffic.total / bytes_per_second if traffic.total else 0.0
