"""Memory, traffic and arithmetic of strategies against explicit formulas."""

from dataclasses import replace

import numpy as np
import pytest

from lib.plan.costs import BackboneCost, ClassifierCost, LinearCost, OptimizerCost
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
SPEC = StepSpec(batch_size=64, num_devices=4, num_classes=1001, num_features=FEATURES, image_size=4)


class Costs:
    """A backbone of 1,000 bytes and 100 per image; a classifier with three logits tensors and its gradient."""

    backbone = BackboneCost(
        num_parameters=250,
        state=1000,
        parameters=960,
        largest_block=300,
        outside=60,
        gradients=1000,
        saved=LinearCost(np.array(0), np.array(100)),
        forward=LinearCost(np.array([0, 0]), np.array([50, 110])),
        backward=LinearCost(np.array([0, 7]), np.array([100, 90])),
        flops=5000,
    )

    def classifier(self, num_images, num_rows):
        rows = 4 * num_rows * FEATURES
        logits = 4 * num_images * num_rows
        return ClassifierCost(rows, rows, peak=3 * logits + rows, retained=logits + rows)

    def chunked_classifier(self, num_images, num_rows, chunk, num_sampled):
        rows, sampled = 4 * num_rows * FEATURES, 4 * num_sampled * FEATURES * (num_sampled < num_rows)
        features = 4 * num_images * FEATURES
        return ClassifierCost(
            rows, rows, peak=2 * 4 * chunk * num_sampled + rows + sampled + features, retained=rows + features
        )

    def optimizer(self, num_rows):
        return OptimizerCost(1000 + 4 * num_rows * FEATURES, 0)


ROW_BYTES = 4 * FEATURES
IMAGE_BYTES = 16 * 3 * 4**2 * 6


def test_plain_strategy_on_one_device():
    spec = replace(SPEC, batch_size=16, num_devices=1)
    memory = estimate_memory(Strategy(16), spec, Costs())
    assert memory.classifier == 2 * 1001 * ROW_BYTES
    assert memory.logits == 3 * 4 * 16 * 1001
    assert memory.total == 3 * 1000 + 3 * 1001 * ROW_BYTES + IMAGE_BYTES + 1600 + memory.logits
    assert (
        estimate_memory(Strategy(16), replace(spec, ema=True), Costs()).total == memory.total + 1000 + 1001 * ROW_BYTES
    )


def test_accumulated_gradients_take_memory_twice():
    spec = replace(SPEC, batch_size=16, num_devices=1)
    accumulated = estimate_memory(Strategy(8), spec, Costs())
    assert accumulated.total == 3 * 1000 + 4 * 1001 * ROW_BYTES + IMAGE_BYTES + 800 + 3 * 4 * 8 * 1001
    assert (
        estimate_memory(Strategy(16), SPEC, Costs()).total
        == estimate_memory(Strategy(16), spec, Costs()).total + 1001 * ROW_BYTES
    )


def test_chunked_strategy_has_logits_of_one_chunk():
    spec = replace(SPEC, batch_size=16, num_devices=1)
    memory = estimate_memory(Strategy(16, chunk=4), spec, Costs())
    assert memory.logits == 2 * 4 * 4 * 1001 + 4 * 16 * FEATURES
    # A chunk is at most the batch.
    assert estimate_memory(Strategy(16, chunk=99), spec, Costs()).logits == 2 * 4 * 16 * 1001 + 4 * 16 * FEATURES


def test_sharded_classifier_has_the_images_of_all_devices():
    strategy = Strategy(16, sharded=True)
    memory = estimate_memory(strategy, SPEC, Costs())
    assert strategy.num_rows(SPEC) == 251  # the largest shard of 1,001 classes
    assert memory.classifier == 2 * 251 * ROW_BYTES
    # The features of all devices, and their gradient.
    assert memory.logits == 2 * 4 * 64 * 251 + 2 * 4 * 64 * FEATURES
    assert memory.total == 3000 + 3 * 251 * ROW_BYTES + IMAGE_BYTES + 1600 + memory.logits


def test_sharded_backbone_is_whole_by_blocks():
    spec = replace(SPEC, ema=True)
    memory = estimate_memory(Strategy(16, sharded=True, backbone_sharded=True), spec, Costs())
    rows = 251 * ROW_BYTES
    # A quarter of 960 bytes of parameters, 40 bytes of buffers, a quarter of the gradients.
    assert memory.backbone == 240 + 40 + 250
    assert memory.ema == 240 + 40 + rows
    # The optimizer has as much state for a gradient of the backbone as for one of the classifier.
    assert memory.optimizer == pytest.approx(250 + rows, abs=2)
    at_loss = 530 + 280 + 250 + 3 * rows + rows + IMAGE_BYTES + 1600 + memory.logits + 60
    assert memory.total == pytest.approx(at_loss, abs=2)
    # With few images, validation takes most: all parameters are whole.
    one = replace(spec, batch_size=4, num_classes=4, image_size=1)
    small = estimate_memory(Strategy(1, backbone_sharded=True), one, Costs())
    whole = 960 + 60 + 2 * 300
    assert small.total > small.backbone + small.ema + small.optimizer + max(960, whole - 960)
    listed = dict(list_strategies(SPEC, chunk=8, sampled=0.1, fits=bool, shard_backbone=True))
    assert listed['both sharded'] == Strategy(16, sharded=True, backbone_sharded=True)
    assert not listed['sharded'].backbone_sharded


def test_sampled_classes_copy_their_rows():
    spec = replace(SPEC, batch_size=16, num_devices=1)
    memory = estimate_memory(Strategy(16, sampled=0.1), spec, Costs())
    assert memory.logits == 2 * 4 * 16 * 101 + 101 * ROW_BYTES + 4 * 16 * FEATURES
    assert memory.classifier == 2 * 1001 * ROW_BYTES


def test_micro_batches_are_the_largest_that_fit():
    chosen = dict(list_strategies(SPEC, chunk=8, sampled=0.1, fits=lambda strategy: strategy.micro_batch <= 5))
    assert chosen['plain'].micro_batch == 16
    assert chosen['accumulated'].micro_batch == 4
    assert (
        dict(list_strategies(SPEC, chunk=8, sampled=0.1, fits=lambda strategy: False))['accumulated'].micro_batch == 2
    )
    assert not any(
        strategy.sharded
        for _, strategy in list_strategies(replace(SPEC, num_devices=1), chunk=8, sampled=0.1, fits=bool)
    )
    assert all(
        strategy.num_micro_batches(SPEC) * strategy.micro_batch >= SPEC.per_device_batch
        for _, strategy in list_strategies(SPEC, chunk=8, sampled=0.1, fits=bool)
    )


@pytest.mark.parametrize('devices', [1, 2, 4])
def test_traffic(devices):
    spec = replace(SPEC, num_devices=devices)
    replicated = estimate_traffic(Strategy(8), spec, Costs.backbone, 1001 * ROW_BYTES)
    assert replicated.total == round(2 * (devices - 1) / devices * (1000 + 1001 * ROW_BYTES))
    sharded = estimate_traffic(Strategy(8, sharded=True), spec, Costs.backbone, 251 * ROW_BYTES)
    assert sharded.gradients == round(2 * (devices - 1) / devices * 1000)
    assert sharded.features == round(3 * (devices - 1) / devices * 4 * 64 * FEATURES)
    both = estimate_traffic(Strategy(8, sharded=True, backbone_sharded=True), spec, Costs.backbone, 251 * ROW_BYTES)
    num_micro_batches = -(-64 // devices // 8)
    assert both.gradients == round((devices - 1) / devices * num_micro_batches * (2 * 960 + 1000))
    assert both.features == sharded.features
    # Two numbers per image to every other device.
    assert sharded.statistics == (devices - 1) * 64 * 2 * 4


def test_flops_do_not_depend_on_sharding_and_chunks():
    spec = replace(SPEC, num_classes=1000)
    whole = estimate_flops(Strategy(16), spec, Costs.backbone)
    assert whole == 16 * 5000 + 6 * 16 * 1000 * FEATURES
    assert estimate_flops(Strategy(16, sharded=True), spec, Costs.backbone) == whole
    assert estimate_flops(Strategy(4, chunk=2), spec, Costs.backbone) == whole
    traffic = estimate_traffic(Strategy(16), spec, Costs.backbone, 0)
    assert estimate_seconds(traffic, 10**6, flops_per_second=1e6, bytes_per_second=1500) == (1.0, 1.0)
