"""Distillation against its oracle and in its limiting cases."""

import pytest
import torch
import torch.nn.functional as F

from lib.loss.distillation import Distillation
from tests.oracles.contrastive import distillation as oracle


def problem(seed, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(5, 7, dtype=dtype, generator=random) for _ in range(2))


def value_and_gradient(loss, logits, teacher):
    logits = logits.clone().requires_grad_()
    value = loss(logits, teacher)
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize(('temperature', 'power'), [(3.0, 0.5), (1.0, 1.0), (2.0, 0.0), (0.5, 0.3)])
def test_equals_the_oracle(seed, temperature, power):
    logits, teacher = problem(seed)
    found = value_and_gradient(Distillation(temperature, power), logits, teacher)
    expected = value_and_gradient(lambda z, t: oracle(z, t, temperature, power), logits, teacher)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-10)


def test_loss_is_0_for_equal_student_and_teacher():
    logits, _ = problem(4)
    value, gradient = value_and_gradient(Distillation(3.0, 1.0), logits, logits)
    assert value.abs() < 1e-12
    assert gradient.abs().max() < 1e-12
    assert value_and_gradient(Distillation(3.0, 0.5), logits, logits)[0] > 1e-3


def test_power_0_is_cross_entropy_with_the_uniform_distribution():
    """Power 0 and temperature 1: cross entropy minus the entropy of the uniform distribution."""
    logits, teacher = problem(5)
    uniform = torch.full_like(logits, 1 / 7)
    expected = value_and_gradient(lambda z, _: F.cross_entropy(z, uniform), logits, teacher)
    found = value_and_gradient(Distillation(1.0, 0.0), logits, teacher)
    torch.testing.assert_close(found[0] + torch.tensor(7.0).double().log(), expected[0])
    torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize('size', [1e4, -1e4])
def test_huge_logits_stay_finite(size):
    logits, teacher = size * torch.eye(4), size * torch.eye(4).flip(0)
    value, gradient = value_and_gradient(Distillation(1.0, 0.5), logits, teacher)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_the_teacher_gets_no_gradient_and_autocast_is_float32():
    logits, teacher = problem(6, torch.float32)
    teacher.requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value, _ = value_and_gradient(Distillation(3.0, 0.5), logits, teacher)
    assert teacher.grad is None
    assert value.dtype == torch.float32
