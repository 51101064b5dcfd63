"""What ways of taking a step need, by formulas written out."""

from dataclasses import replace

import numpy as np
import pytest

from lib.plan.backbone import BackboneCost, LinearCost
from lib.plan.head import ClassifierCost, OptimizerCost
from lib.plan.strategies import (
    StepSpec,
    Strategy,
    estimate_flops,
    estimate_memory,
    estimate_seconds,
    estimate_traffic,
    list_strategies,
)

FEATURES = 10
JOB = StepSpec(batch_size=64, devices=4, num_classes=1001, num_features=FEATURES, image_size=4)


class Costs:
    """A backbone of 1,000 bytes and 100 an image; a head of three logits tensors and its gradient."""

    backbone = BackboneCost(
        num_parameters=250,
        state=1000,
        gradients=1000,
        saved=LinearCost(np.array(0), np.array(100)),
        forward=LinearCost(np.array([0, 0]), np.array([50, 110])),
        backward=LinearCost(np.array([0, 7]), np.array([100, 90])),
        flops=5000,
    )

    def head(self, num_images, num_rows):
        rows = 4 * num_rows * FEATURES
        logits = 4 * num_images * num_rows
        return ClassifierCost(rows, rows, peak=3 * logits + rows, kept=logits + rows)

    def lean_head(self, num_images, num_rows, chunk, num_compared):
        rows, drawn = 4 * num_rows * FEATURES, 4 * num_compared * FEATURES * (num_compared < num_rows)
        of_features = 4 * num_images * FEATURES
        return ClassifierCost(
            rows, rows, peak=2 * 4 * chunk * num_compared + rows + drawn + of_features, kept=rows + of_features
        )

    def optimizer(self, num_rows):
        return OptimizerCost(1000 + 4 * num_rows * FEATURES, 0)


ROWS = 4 * FEATURES  # bytes of a row
PIXELS = 16 * 3 * 4**2 * 6


def test_the_whole_batch_on_one_device():
    job = replace(JOB, batch_size=16, devices=1)
    need = estimate_memory(Strategy(16), job, Costs())
    assert need.classifier == 2 * 1001 * ROWS
    assert need.logits == 3 * 4 * 16 * 1001
    assert need.total == 3 * 1000 + 3 * 1001 * ROWS + PIXELS + 1600 + need.logits
    assert estimate_memory(Strategy(16), replace(job, ema=True), Costs()).total == need.total + 1000 + 1001 * ROWS


def test_gradients_of_parts_and_of_several_devices_are_there_twice():
    job = replace(JOB, batch_size=16, devices=1)
    in_parts = estimate_memory(Strategy(8), job, Costs())
    assert in_parts.total == 3 * 1000 + 4 * 1001 * ROWS + PIXELS + 800 + 3 * 4 * 8 * 1001
    assert (
        estimate_memory(Strategy(16), JOB, Costs()).total
        == estimate_memory(Strategy(16), job, Costs()).total + 1001 * ROWS
    )


def test_chunks_have_logits_of_their_own_images():
    job = replace(JOB, batch_size=16, devices=1)
    need = estimate_memory(Strategy(16, chunk=4), job, Costs())
    assert need.logits == 2 * 4 * 4 * 1001 + 4 * 16 * FEATURES
    # A chunk is no larger than the batch.
    assert estimate_memory(Strategy(16, chunk=99), job, Costs()).logits == 2 * 4 * 16 * 1001 + 4 * 16 * FEATURES


def test_a_share_of_the_classes_sees_the_images_of_all():
    way = Strategy(16, sharded=True)
    need = estimate_memory(way, JOB, Costs())
    assert way.rows(JOB) == 251  # the largest share of 1,001
    assert need.classifier == 2 * 251 * ROWS
    # The features of all, and their gradient.
    assert need.logits == 2 * 4 * 64 * 251 + 2 * 4 * 64 * FEATURES
    assert need.total == 3000 + 3 * 251 * ROWS + PIXELS + 1600 + need.logits


def test_a_sample_of_the_classes_copies_its_rows():
    job = replace(JOB, batch_size=16, devices=1)
    need = estimate_memory(Strategy(16, sampled=0.1), job, Costs())
    assert need.logits == 2 * 4 * 16 * 101 + 101 * ROWS + 4 * 16 * FEATURES
    assert need.classifier == 2 * 1001 * ROWS


def test_parts_are_the_largest_that_fit():
    chosen = dict(list_strategies(JOB, chunk=8, sampled=0.1, fits=lambda way: way.at_once <= 5))
    assert chosen['plain'].at_once == 16
    assert chosen['accumulated'].at_once == 4
    assert dict(list_strategies(JOB, chunk=8, sampled=0.1, fits=lambda way: False))['accumulated'].at_once == 2
    assert not any(way.sharded for _, way in list_strategies(replace(JOB, devices=1), chunk=8, sampled=0.1, fits=bool))
    assert all(
        way.parts(JOB) * way.at_once >= JOB.share for _, way in list_strategies(JOB, chunk=8, sampled=0.1, fits=bool)
    )


@pytest.mark.parametrize('devices', [1, 2, 4])
def test_traffic(devices):
    job = replace(JOB, devices=devices)
    shared = estimate_traffic(Strategy(8), job, Costs.backbone, 1001 * ROWS)
    assert shared.total == round(2 * (devices - 1) / devices * (1000 + 1001 * ROWS))
    sharded = estimate_traffic(Strategy(8, sharded=True), job, Costs.backbone, 251 * ROWS)
    assert sharded.gradients == round(2 * (devices - 1) / devices * 1000)
    assert sharded.features == round(3 * (devices - 1) / devices * 4 * 64 * FEATURES)
    # Two numbers an image to every other device.
    assert sharded.statistics == (devices - 1) * 64 * 2 * 4


def test_arithmetic_is_shared_alike_however_the_classes_lie():
    job = replace(JOB, num_classes=1000)
    whole = estimate_flops(Strategy(16), job, Costs.backbone)
    assert whole == 16 * 5000 + 6 * 16 * 1000 * FEATURES
    assert estimate_flops(Strategy(16, sharded=True), job, Costs.backbone) == whole
    assert estimate_flops(Strategy(4, chunk=2), job, Costs.backbone) == whole
    traffic = estimate_traffic(Strategy(16), job, Costs.backbone, 0)
    assert estimate_seconds(traffic, 10**6, flops_a_second=1e6, bytes_a_second=1500) == (1.0, 1.0)
