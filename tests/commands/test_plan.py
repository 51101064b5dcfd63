"""Plans: extrapolated costs against measured ones, recommendations and times against a computation by hand."""

import functools

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from lib.builders.loss import build_loss
from lib.commands.plan import StepCosts, make_plan
from lib.config.yaml_text import as_node
from lib.errors import UserError
from lib.plan.costs import chunked_classifier_cost
from tests.defaults import DEFAULTS


@pytest.mark.long
@pytest.mark.parametrize(
    ('classifier', 'fraction', 'dtype'),
    [
        ('FC', 1.0, None),
        ('lws', 0.5, torch.bfloat16),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ('FC', 1.0, torch.bfloat16),
                ('FCNorm', 1.0, None),
                ('FCNorm', 1.0, torch.bfloat16),
                ('lws', 0.5, None),
            )
        ),
    ],
)
def test_large_classifier_is_extrapolated(classifier, fraction, dtype):
    cfg = as_node(
        DEFAULTS | {'NAME': 'x', 'MODEL.BACKBONE': 'res32_cifar', 'INPUT.SIZE': 32, 'MODEL.CLASSIFIER': classifier}
    )
    costs = StepCosts(cfg, 10, dtype)
    images, rows, chunk = 100, 1_500_000, 8
    sampled = round(rows * fraction)
    found = costs.chunked_classifier(images, rows, chunk, sampled)
    model = costs._recognizer(nn.Identity(), rows)
    loss = build_loss(cfg, np.ones(sampled, dtype=np.int64))
    whole = chunked_classifier_cost(model, loss, costs.num_features, images, chunk=chunk, num_sampled=sampled)
    assert (found.parameters, found.gradients) == (whole.parameters, whole.gradients)
    assert found.peak == pytest.approx(whole.peak, rel=0.01)
    assert found.retained == pytest.approx(whole.retained, rel=0.01)


PLAN = {
    'NAME': 'x', 'MODEL.BACKBONE': 'resnet18', 'INPUT.SIZE': 64, 'TRAIN.BATCH_SIZE': 512, 'TRAIN.MAX_EPOCH': 10,
    'PLAN.NUM_CLASSES': 1_000_000, 'PLAN.DEVICES': 8, 'PLAN.DEVICE_GB': 80.0, 'PLAN.TFLOPS': 100.0,
    'PLAN.UTILIZATION': 0.25, 'PLAN.LINK_GB_S': 2.0, 'PLAN.IMAGES': 3_000_000, 'RUN.DEVICE': 'cpu',
    'RUN.PRECISION': 'float32',
}  # fmt: skip


@functools.cache
def costs_of(num_classes):
    return StepCosts(as_node(DEFAULTS | PLAN), num_classes, None)


@pytest.fixture
def plan_of(monkeypatch):
    """Return make_plan for changes of PLAN. Model and loss are the same in all tests, so they are measured once."""
    monkeypatch.setattr('lib.commands.plan.StepCosts', lambda cfg, num_classes, dtype: costs_of(num_classes))
    values = DEFAULTS | PLAN
    return lambda changes={}: make_plan(as_node(values | changes))


def cells(lines, row, heading):
    """Return the numbers of a row in the table whose first line contains `heading`."""
    start = next(number for number, line in enumerate(lines) if heading in line)
    line = next(line for line in lines[start + 1 :] if line.startswith(f'{row} '))
    return [float(cell.replace(',', '')) for cell in line[len(row) :].split() if cell[0].isdigit()]


def convolution_flops(size):
    """Return the floating-point operations per image of torchvision's ResNet-18, forward and backward."""
    model = torchvision.models.resnet18().to('meta')
    total = []

    def count(convolution, inputs, output):
        multiply_adds = convolution.weight.numel() * output[0, 0].numel()
        needs = 2 if convolution.in_channels == 3 else 3  # no gradient of the pixels is computed
        total.append(2 * needs * multiply_adds)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    model(torch.empty(1, 3, size, size, device='meta'))
    return sum(total)


@pytest.mark.long
def test_the_fastest_strategy_that_fits_is_recommended_with_times_computed_by_hand(plan_of):
    lines = plan_of()
    assert max(map(len, lines)) <= 80
    devices, classes, features, batch = 8, 10**6, 512, 512
    backbone_bytes = 4 * (11_689_512 - 512 * 1000 - 1000)  # torchvision's ResNet-18 without its classifier
    classifier_bytes = 4 * classes * (features + 1)
    sends = {
        'plain': 2 * 7 / 8 * (backbone_bytes + classifier_bytes),
        # Features are gathered, their gradients are all-reduced, and two numbers per image go to every other device.
        'sharded': 2 * 7 / 8 * backbone_bytes + 3 * 7 / 8 * 4 * batch * features + 7 * 2 * 4 * batch,
    }
    flops = {'plain': batch / devices * (convolution_flops(64) + 6 * classes * features)}
    flops['sharded'] = flops['plain']
    flops['sharded, sampled'] = batch / devices * convolution_flops(64) + 6 * batch * classes / devices / 10 * features
    sends['sharded, sampled'] = sends['sharded']
    hours = {}
    for name, num_bytes in sends.items():
        compute, send = flops[name] / (0.25 * 100e12), num_bytes / 2e9
        step = compute + send
        hours[name] = 10 * (3_000_000 // 512) * step / 3600
        megabytes, teraflops, *times = cells(lines, name, 'sends MB')
        assert megabytes == pytest.approx(num_bytes / 1e6, abs=0.06)
        assert teraflops == pytest.approx(flops[name] / 1e12, rel=0.006)
        assert times[:2] == pytest.approx([compute, send], abs=0.0006)
        assert times[2:] == pytest.approx([batch / step, hours[name] / 10], rel=0.006)
    number = lines.index('fastest strategy that fits: sharded')
    assert lines[number + 1] == '    --MODEL_CLASSIFIER_SHARDED True'
    assert hours['plain'] > 10 * hours['sharded']
    assert f'{hours["sharded"]:.3g} hours' in ' '.join(lines)
    assert cells(lines, 'sharded', 'GPU-hours')[-1] == pytest.approx(devices * hours['sharded'], rel=0.006)


@pytest.mark.long
@pytest.mark.parametrize(
    ('changes', 'lines', 'absent'),
    [
        # Few classes: their gradients are smaller than the features of all images.
        ({'PLAN.NUM_CLASSES': 10}, ['fastest strategy that fits: plain'], 'approximate'),
        ({'PLAN.TFLOPS': 0.0}, ['fastest strategy that fits: sharded'], 'GPU-hours'),
        # Without times, the loss of the config is kept; sampled classes save two thirds of the arithmetic.
        ({'PLAN.DEVICES': 1}, ['fastest strategy that fits: plain', 'faster, with an approximate loss: sampled'], '?'),
        (
            {'PLAN.DEVICES': 1, 'LOSS.SAMPLED_CLASSES': 0.2},
            ['fastest strategy that fits: sampled', '    --LOSS_SAMPLED_CLASSES 0.2'],
            'approximate',
        ),
        ({'PLAN.DEVICE_GB': 0.5}, ['nothing fits: use smaller images, fewer features,'], 'fastest'),
        # What the config sets is compared with what is recommended.
        ({'TRAIN.DEVICE_BATCH_SIZE': 16}, ['fastest strategy that fits: sharded'], '?'),
    ],
)
def test_recommendations(plan_of, changes, lines, absent):
    found = plan_of(changes)
    assert set(lines) <= set(found)
    assert absent not in '\n'.join(found)
    if 'TRAIN.DEVICE_BATCH_SIZE' in changes:
        totals = found[next(number for number, line in enumerate(found) if 'GPU-hours' in line) :]
        assert [line.split('  ')[0] for line in totals[1:]] == ['sharded', 'sharded, sampled', 'as configured']


def test_without_data_the_number_of_classes_is_asked_for(tmp_path):
    cfg = as_node(DEFAULTS | {'NAME': 'x', 'DATASET.ROOT': str(tmp_path / 'absent'), 'RUN.DEVICE': 'cpu'})
    with pytest.raises(UserError, match=r'absent: no such folder.*; to plan without data: --PLAN_NUM_CLASSES 1000$'):
        make_plan(cfg)
