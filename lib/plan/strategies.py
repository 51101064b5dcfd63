"""Ways of taking a training step, what each needs of a device, and the cheapest that fits.

What the devices send each other in a step, and how long it takes.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from lib.plan.backbone import BackboneCost
from lib.plan.head import ClassifierCost, OptimizerCost

FLOAT = 4  # bytes of a number in float32
# What of a device's memory a plan may use; kernels' workspaces, the allocator's gaps and CUDA itself take the rest.
USABLE = 0.9


@dataclass(frozen=True)
class StepSpec:
    """A step that is to be taken.

    Attributes:
        batch_size: images a step, over all devices.
        devices: that share them.
        num_classes, num_features, image_size: of the model.
        ema: whether an average of the weights is kept.
    """

    batch_size: int
    devices: int
    num_classes: int
    num_features: int
    image_size: int
    ema: bool = False

    @property
    def share(self) -> int:
        """Images of a device."""
        return -(-self.batch_size // self.devices)


@dataclass(frozen=True)
class Strategy:
    """How a step is taken.

    Attributes:
        at_once: images that a device takes through the backbone at once (TRAIN.DEVICE_BATCH_SIZE).
        chunk: images that are classified at once; 0: all (LOSS.CHUNK_IMAGES).
        sharded: whether each device holds its share of the classes (MODEL.CLASSIFIER_SHARDED).
        sampled: share of the classes that a step compares with (LOSS.SAMPLED_CLASSES).
    """

    at_once: int
    chunk: int = 0
    sharded: bool = False
    sampled: float = 1.0

    def rows(self, job: StepSpec) -> int:
        """Return the rows of the classifier that a device holds."""
        return -(-job.num_classes // job.devices) if self.sharded else job.num_classes

    def compared(self, job: StepSpec) -> int:
        """Return how many of its rows a device computes logits of."""
        return max(1, math.ceil(self.sampled * self.rows(job)))

    def head_images(self, job: StepSpec) -> int:
        """Return how many images a device classifies for a part of the batch: those of all, when it holds a share."""
        return self.at_once * job.devices if self.sharded else self.at_once

    def parts(self, job: StepSpec) -> int:
        """Return the number of parts of a device's images."""
        return -(-job.share // self.at_once)


class Costs(Protocol):
    """What the parts of a step take; see backbone_cost, head_cost, lean_head_cost and optimizer_cost."""

    backbone: BackboneCost

    def head(self, num_images: int, num_rows: int) -> ClassifierCost: ...

    def lean_head(self, num_images: int, num_rows: int, chunk: int, num_compared: int) -> ClassifierCost: ...

    def optimizer(self, num_rows: int) -> OptimizerCost: ...


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a device at the fullest moment of a step.

    Attributes:
        backbone, classifier: parameters and gradients.
        optimizer: its state, or what a step of it takes beside that.
        average: of the weights.
        images: of the batch, in uint8 and in float32.
        activations: kept for the way back.
        logits: what classifier and loss take at once beside parameters and gradients.
        total: at the fullest moment, which not all of the above may be part of.
    """

    backbone: int
    classifier: int
    optimizer: int
    average: int
    images: int
    activations: int
    logits: int
    total: int


def estimate_memory(way: Strategy, job: StepSpec, costs: Costs) -> MemoryEstimate:
    """Return what a way needs of each device.

    A step has four full moments: the way through the backbone; classifier and loss, with all activations there; the
    way back; the optimiser. Gradients of the backbone are counted at all of them: parts of a batch add to them, and
    between devices they live in the buckets that are exchanged.
    """
    backbone, rows = costs.backbone, way.rows(job)
    held = costs.head(2, rows)
    optimizer = costs.optimizer(rows)
    average = backbone.state + held.parameters if job.ema else 0
    pixels = 3 * job.image_size**2
    images = job.share * pixels * (FLOAT + 2)  # float32, and two batches of uint8: the next one is on its way
    always = backbone.state + backbone.gradients + held.parameters + optimizer.state + average + images
    # Gradients of earlier parts, or the buckets of several devices, are there when new ones come.
    summed = held.gradients if way.parts(job) > 1 or (job.devices > 1 and not way.sharded) else 0
    peak, kept = _head(way, job, costs)
    activations = backbone.saved.at(way.at_once)
    moments = (
        backbone.forward.at(way.at_once) + summed,
        activations + summed + peak,
        backbone.backward.at(way.at_once) + summed + kept,
        held.gradients + optimizer.extra,
    )
    return MemoryEstimate(
        backbone=backbone.state + backbone.gradients,
        classifier=held.parameters + held.gradients,
        optimizer=optimizer.state,
        average=average,
        images=images,
        activations=activations,
        logits=peak - held.gradients,
        total=always + max(moments),
    )


def _head(way: Strategy, job: StepSpec, costs: Costs) -> tuple[int, int]:
    """Return the peak of classifier and loss, new gradients included, and what of it stays on the way back."""
    num_images, num_rows = way.head_images(job), way.rows(job)
    if not (way.chunk or way.sharded or way.sampled < 1):
        cost = costs.head(num_images, num_rows)
        return cost.peak, cost.kept
    chunk = min(way.chunk, num_images) if way.chunk else num_images
    cost = costs.lean_head(num_images, num_rows, chunk, way.compared(job))
    # The features of all devices are there once more.
    return cost.peak + (FLOAT * num_images * job.num_features if way.sharded else 0), cost.kept


def list_strategies(
    job: StepSpec, *, chunk: int, sampled: float, fits: Callable[[Strategy], bool]
) -> Iterator[tuple[str, Strategy]]:
    """Give names and ways, the cheapest first: what changes nothing, what costs time, what changes the method.

    Where a way takes the images in parts, these are as large as fit.

    Args:
        chunk, sampled: for the ways that have them.
    """
    whole = Strategy(job.share)
    yield 'plain', whole
    yield 'chunked', replace(whole, chunk=chunk)
    yield 'accumulated', _in_parts(whole, fits)
    yield 'accumulated, chunked', _in_parts(replace(whole, chunk=chunk), fits)
    if job.devices > 1:
        shared = replace(whole, sharded=True)
        yield 'sharded', shared
        yield 'sharded, chunked', replace(shared, chunk=chunk)
        yield 'sharded, accumulated', _in_parts(shared, fits)
        yield 'sharded, accum., chunked', _in_parts(replace(shared, chunk=chunk), fits)
        yield 'sharded, sampled', replace(shared, sampled=sampled)
        yield 'sharded, sampled, accum.', _in_parts(replace(shared, sampled=sampled), fits)
    else:
        yield 'sampled', replace(whole, sampled=sampled)
        yield 'sampled, accumulated', _in_parts(replace(whole, sampled=sampled), fits)


def _in_parts(way: Strategy, fits: Callable[[Strategy], bool]) -> Strategy:
    """Return the way with the fewest parts that fit, two images at least: halves, quarters, ..."""
    parts, share = 2, way.at_once
    while share > 2:
        way = replace(way, at_once=max(2, -(-share // parts)))
        if way.at_once == 2 or fits(way):
            break
        parts *= 2
    return way


# Of each image every device tells the others its label's logit and the log-sum-exp of its classes.
_STATISTICS = 2


@dataclass(frozen=True)
class Traffic:
    """Bytes that a device sends in a step (and as many that it receives).

    Attributes:
        gradients: the mean of those that all devices share, by a ring: 2 (W - 1) / W times their size.
        features: of a sharded classifier: those of all images to all devices, and the sum of their gradients.
        statistics: of a sharded loss.
    """

    gradients: int
    features: int
    statistics: int

    @property
    def total(self) -> int:
        return self.gradients + self.features + self.statistics


def estimate_traffic(way: Strategy, job: StepSpec, backbone: BackboneCost, classifier_gradients: int) -> Traffic:
    """Return what a device sends in a step.

    Args:
        classifier_gradients: bytes, of the rows that a device holds.
    """
    others = job.devices - 1
    ring = others / job.devices
    gradients = backbone.gradients + (0 if way.sharded else classifier_gradients)
    if not way.sharded:
        return Traffic(round(2 * ring * gradients), 0, 0)
    features = FLOAT * job.batch_size * job.num_features
    # Gathered, a ring sends (W - 1) / W of all; their gradients are summed, and each device then takes its own.
    return Traffic(
        round(2 * ring * gradients),
        round(3 * ring * features),
        others * FLOAT * _STATISTICS * job.batch_size,
    )


def estimate_flops(way: Strategy, job: StepSpec, backbone: BackboneCost) -> int:
    """Return the floating-point operations of a device in a step: two a multiplication and its addition.

    Of the classifier: logits, and gradients of features and rows, each 2 * images * classes * features.
    """
    head_images = job.share * job.devices if way.sharded else job.share
    return job.share * backbone.flops + 6 * head_images * way.compared(job) * job.num_features


def estimate_seconds(
    traffic: Traffic, flops: int, *, flops_a_second: float, bytes_a_second: float
) -> tuple[float, float]:
    """Return the seconds of computing and of sending in a step. That one may hide the other is not counted on."""
    return flops / flops_a_second, traffic.total / bytes_a_second if traffic.total else 0.0
