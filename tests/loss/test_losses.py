"""Every loss against its oracle (values and gradients), its limiting case, and at the ends of float32."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.loss.balanced_softmax import BalancedSoftmax
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.focal import Focal
from tests.oracles import losses as oracle

COUNTS = [500, 70, 1, 0, 12, 3]


def problem(seed: int, num_classes: int = len(COUNTS), batch: int = 9):
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, num_classes, dtype=torch.float64, generator=random)
    labels = torch.randint(num_classes, (batch,), generator=random)
    labels[0] = 0  # one label at least that has images
    return logits, labels


def value_and_gradient(loss, logits, labels):
    logits = logits.clone().requires_grad_()
    value = loss(logits, labels)
    value.backward()
    return value.detach(), logits.grad


CASES = {
    'cross_entropy': (CrossEntropy(), lambda z, y: oracle.cross_entropy(z, y, 0.0)),
    'label_smoothing': (CrossEntropy(label_smoothing=0.1), lambda z, y: oracle.cross_entropy(z, y, 0.1)),
    'focal_2': (Focal(gamma=2.0), lambda z, y: oracle.focal(z, y, 2.0)),
    'focal_half': (Focal(gamma=0.5), lambda z, y: oracle.focal(z, y, 0.5)),
    'balanced_softmax': (
        BalancedSoftmax(class_counts=np.array(COUNTS)),
        lambda z, y: oracle.balanced_softmax(z, y, COUNTS),
    ),
}


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('name', CASES)
def test_equals_its_oracle(name, seed):
    loss, slow = CASES[name]
    logits, labels = problem(seed)
    value, gradient = value_and_gradient(loss, logits, labels)
    expected_value, expected_gradient = value_and_gradient(slow, logits, labels)
    torch.testing.assert_close(value, expected_value, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize('name', CASES)
def test_float32_is_close_to_float64(name):
    loss, _ = CASES[name]
    logits, labels = problem(seed=7)
    value, gradient = value_and_gradient(loss, logits.float(), labels)
    expected_value, expected_gradient = value_and_gradient(loss, logits, labels)
    assert value.dtype == torch.float32
    assert value.ndim == 0
    torch.testing.assert_close(value.double(), expected_value, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('size', [1e4, -1e4])
@pytest.mark.parametrize('name', CASES)
def test_huge_logits_stay_finite(name, size):
    loss, _ = CASES[name]
    logits = torch.zeros(len(COUNTS), len(COUNTS))
    logits.fill_diagonal_(size)
    for labels in (torch.arange(len(COUNTS)), torch.arange(len(COUNTS)).flip(0)):
        value, gradient = value_and_gradient(loss, logits, labels)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    'loss',
    [Focal(gamma=0.0), BalancedSoftmax(class_counts=torch.full((6,), 17)), CrossEntropy(label_smoothing=0.0)],
    ids=['focal gamma 0', 'balanced softmax with equal counts', 'no smoothing'],
)
def test_limiting_case_is_cross_entropy(loss):
    logits, labels = problem(seed=11)
    value, gradient = value_and_gradient(loss, logits, labels)
    expected_value, expected_gradient = value_and_gradient(F.cross_entropy, logits, labels)
    torch.testing.assert_close(value, expected_value, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(0, 8000), min_size=2, max_size=12).filter(any),
    seed=st.integers(0, 2**31),
)
def test_balanced_softmax_holds_for_any_counts(counts, seed):
    logits, labels = problem(seed, num_classes=len(counts))
    labels[0] = int(np.argmax(counts))
    value, gradient = value_and_gradient(BalancedSoftmax(np.array(counts)), logits, labels)
    expected_value, expected_gradient = value_and_gradient(
        lambda z, y: oracle.balanced_softmax(z, y, counts), logits, labels
    )
    torch.testing.assert_close(value, expected_value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-6)


def test_a_batch_of_empty_classes_has_no_loss_and_no_gradient():
    empty = COUNTS.index(0)
    value, gradient = value_and_gradient(
        BalancedSoftmax(np.array(COUNTS)), torch.randn(2, 6), torch.tensor([empty, empty])
    )
    assert value == 0
    assert gradient.count_nonzero() == 0


def test_an_empty_class_is_never_pushed():
    _, gradient = value_and_gradient(BalancedSoftmax(np.array(COUNTS)), *problem(seed=3))
    assert gradient[:, COUNTS.index(0)].count_nonzero() == 0


def test_focal_below_one_is_finite_at_a_certain_image():
    value, gradient = value_and_gradient(Focal(0.5), torch.tensor([[200.0, -200.0]]), torch.tensor([0]))
    assert value == 0
    assert gradient.isfinite().all()


def test_the_prior_is_no_part_of_a_checkpoint():
    assert not BalancedSoftmax(np.array(COUNTS)).state_dict()


@pytest.mark.parametrize('counts', [[0, 0], [3, -1], [[1, 2]]])
def test_senseless_counts_are_refused(counts):
    with pytest.raises(ValueError, match='class_counts'):
        BalancedSoftmax(np.array(counts))
