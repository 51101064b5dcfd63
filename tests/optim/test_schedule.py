"""Schedules against torch's schedulers, and warm-up."""

import math
import pickle

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR

from lib.errors import UserError
from lib.optim.schedule import cosine, multistep, one_cycle

SPE = 7  # steps per epoch


def rates_of(scheduler_of, num_steps: int, lr: float) -> list[float]:
    """Return the learning rate of every step, from a torch scheduler stepped once per iteration."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = scheduler_of(optimizer)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    return rates


def test_multistep_equals_torch():
    ours = multistep(0.1, [2, 5], 0.1, steps_per_epoch=SPE)
    expected = rates_of(lambda o: MultiStepLR(o, [2 * SPE, 5 * SPE], gamma=0.1), 8 * SPE, 0.1)
    assert [ours(step) for step in range(8 * SPE)] == pytest.approx(expected, rel=1e-12)


def test_cosine_equals_torch():
    ours = cosine(0.1, 0.001, max_epoch=6, steps_per_epoch=SPE)
    expected = rates_of(lambda o: CosineAnnealingLR(o, T_max=6 * SPE, eta_min=0.001), 6 * SPE, 0.1)
    assert [ours(step) for step in range(6 * SPE)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(('max_epoch', 'warmup'), [(10, 3), (4, 2), (8, 1)])
def test_one_cycle_equals_torch(max_epoch, warmup):
    ours = one_cycle(0.4, max_epoch=max_epoch, steps_per_epoch=SPE, warmup_epochs=warmup)
    total = max_epoch * SPE
    expected = rates_of(
        lambda o: OneCycleLR(o, 0.4, total, pct_start=warmup / max_epoch, cycle_momentum=False),
        total - 1,
        0.4,
    )
    assert [ours(step) for step in range(total - 1)] == pytest.approx(expected, rel=1e-9)
    assert ours(total - 1) == pytest.approx(0.4 / 25 / 1e4)


def test_the_aiproducts_recipe():
    ours = multistep(0.5, (10, 20, 30, 50), (0.1, 0.1, 0.1, 0.2), steps_per_epoch=SPE)
    rates = [ours(epoch * SPE) for epoch in (0, 9, 10, 20, 30, 40, 49, 50, 119)]
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.005, 5e-4, 5e-4, 5e-4, 1e-4, 1e-4])
    assert ours(50 * SPE - 1) == pytest.approx(5e-4)


SCHEDULES = {
    'multistep': multistep(1.0, [6], 0.1, steps_per_epoch=SPE, warmup_epochs=2),
    'cosine': cosine(1.0, 0.01, max_epoch=8, steps_per_epoch=SPE, warmup_epochs=2),
}


@pytest.mark.parametrize('name', SCHEDULES)
def test_warmup_is_linear_and_starts_above_zero(name):
    warmup = [SCHEDULES[name](step) for step in range(2 * SPE)]
    assert warmup == pytest.approx([(step + 1) / (2 * SPE) for step in range(2 * SPE)])
    assert SCHEDULES[name](2 * SPE) == 1.0


def test_warmup_from_a_start_factor():
    ours = multistep(1.0, [], [], steps_per_epoch=10, warmup_epochs=1, warmup_start_factor=0.5)
    assert [ours(step) for step in (0, 4, 9, 10)] == pytest.approx([0.55, 0.75, 1.0, 1.0])


def test_cosine_spans_the_steps_after_warmup():
    expected = rates_of(lambda o: CosineAnnealingLR(o, T_max=6 * SPE, eta_min=0.01), 6 * SPE, 1.0)
    rates = [SCHEDULES['cosine'](step) for step in range(2 * SPE, 8 * SPE)]
    assert rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    'schedule', [*SCHEDULES.values(), one_cycle(1.0, max_epoch=8, steps_per_epoch=SPE, warmup_epochs=2)]
)
def test_every_rate_is_positive_and_the_last_one_is_held(schedule):
    rates = [schedule(step) for step in range(9 * SPE)]
    assert all(0 < rate <= 1 for rate in rates)
    assert math.isclose(schedule(8 * SPE), schedule(100 * SPE))
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize(
    ('warmup_epochs', 'max_epoch', 'steps_per_epoch'), [(0, 3, 5), (1, 2, 1), (1, 3, 1), (0.5, 1, 4)]
)
def test_one_cycle_of_a_few_steps(warmup_epochs, max_epoch, steps_per_epoch):
    ours = one_cycle(1.0, max_epoch=max_epoch, steps_per_epoch=steps_per_epoch, warmup_epochs=warmup_epochs)
    total = max_epoch * steps_per_epoch
    rates = [ours(step) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[-1] == pytest.approx(1 / 25 / 1e4)


def test_fractional_epochs_are_rounded_to_steps():
    ours = multistep(1.0, [0.07], 0.1, steps_per_epoch=100)
    assert [ours(step) for step in (6, 7)] == pytest.approx([1.0, 0.1])


@pytest.mark.parametrize(
    ('make', 'key'),
    [
        (lambda: multistep(0.1, [3, 3], 0.1, steps_per_epoch=1), 'MILESTONE_EPOCHS'),
        (lambda: multistep(0.1, [3, 4, 5], [0.1, 0.1], steps_per_epoch=1), 'FACTORS'),
        (lambda: cosine(0.1, 0.0, max_epoch=3, warmup_epochs=3, steps_per_epoch=5), 'WARMUP_EPOCHS'),
        (lambda: one_cycle(0.1, max_epoch=3, warmup_epochs=4, steps_per_epoch=5), 'WARMUP_EPOCHS'),
    ],
)
def test_invalid_schedule_names_its_key(make, key):
    with pytest.raises(UserError, match=key):
        make()
