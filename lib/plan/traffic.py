"""What the devices send each other in a step, and how long it takes."""

from dataclasses import dataclass

from lib.plan.backbone import BackboneCost
from lib.plan.strategies import FLOAT, Job, Way

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


def traffic_of(way: Way, job: Job, backbone: BackboneCost, classifier_gradients: int) -> Traffic:
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


def flops_of(way: Way, job: Job, backbone: BackboneCost) -> int:
    """Return the floating-point operations of a device in a step: two a multiplication and its addition.

    Of the classifier: logits, and gradients of features and rows, each 2 * images * classes * features.
    """
    head_images = job.share * job.devices if way.sharded else job.share
    return job.share * backbone.flops + 6 * head_images * way.compared(job) * job.num_features


def seconds_of(traffic: Traffic, flops: int, *, flops_a_second: float, bytes_a_second: float) -> tuple[float, float]:
    """Return the seconds of computing and of sending in a step. That one may hide the other is not counted on."""
    return flops / flops_a_second, traffic.total / bytes_a_second if traffic.total else 0.0
