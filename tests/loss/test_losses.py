"""Every loss against its oracle (values and gradients), in all precisions and for extreme logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.loss import target_vs_rest
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from tests.loss.cases import CASES, COUNTS, Problem, assert_same, fast, problem, slow, value_and_gradients

every_loss = pytest.mark.parametrize('name', CASES)


@pytest.mark.parametrize('k', [0, 2, 3])
@pytest.mark.parametrize('seed', [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@every_loss
def test_equals_the_oracle(name, seed, k):
    """With k > 1 some images have one class twice: 6 classes, 9 images."""
    some = problem(seed, k=k)
    assert_same(fast(CASES[name], some), slow(CASES[name], some))


@settings(max_examples=12, deadline=None)
@given(
    counts=st.lists(st.one_of(st.integers(0, 2), st.integers(0, 8000)), min_size=2, max_size=9).filter(any),
    seed=st.integers(0, 2**31),
    k=st.integers(0, 2),
)
@every_loss
def test_equals_the_oracle_for_any_counts(name, counts, seed, k):
    some = problem(seed, num_classes=len(counts), batch=4, k=k)
    some.targets.labels[0] = counts.index(max(counts))
    assert_same(fast(CASES[name], some, counts), slow(CASES[name], some, counts), atol=1e-9)


@every_loss
def test_each_entry_is_the_loss_of_that_label_alone(name):
    loss = CASES[name].make(torch.tensor(COUNTS))
    logits, features, targets = problem(seed=4, k=3)
    extra = (features,) if loss.uses_features else ()
    matrix = loss(logits, targets.labels, *extra)
    assert matrix.shape == targets.labels.shape
    for k in range(3):
        column = loss(logits, targets.labels[:, k], *extra)
        assert column.shape == (len(logits),)
        torch.testing.assert_close(matrix[:, k], column, rtol=1e-12, atol=1e-12)


@every_loss
def test_float32_is_close_to_float64(name):
    some = problem(seed=7)
    found = fast(CASES[name], some.to(torch.float32))
    assert [tensor.dtype for tensor in found] == [torch.float32] * 3
    assert_same(found, fast(CASES[name], some), rtol=1e-4, atol=1e-6)


@every_loss
def test_blocks_of_images_change_nothing(name, monkeypatch):
    """9 images of 6 classes, in blocks of 2 images and a last one of 1."""
    some = problem(seed=5, k=2)
    whole = fast(CASES[name], some)
    monkeypatch.setattr(target_vs_rest, '_BLOCK_ELEMENTS', 2 * 6 // torch.get_num_threads())
    assert_same(fast(CASES[name], some), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@every_loss
def test_half_precision_logits_are_computed_in_float32(name, dtype):
    some = problem(seed=8, k=2)
    half = some.to(dtype)
    value, gradient, _ = fast(CASES[name], half)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    expected, expected_gradient, _ = fast(CASES[name], half.to(torch.float32))
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.float(), expected_gradient, rtol=1e-2, atol=1e-5)
    exact, _, _ = fast(CASES[name], some)
    torch.testing.assert_close(value.double(), exact, rtol=1e-2, atol=1e-2)


@every_loss
def test_autocast_changes_nothing(name):
    some = problem(seed=9, k=2).to(torch.float32)
    expected = fast(CASES[name], some)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = fast(CASES[name], some)
    assert_same(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize('size', [1e4, -1e4])
@every_loss
def test_huge_logits_have_finite_gradients(name, size):
    logits = torch.zeros(len(COUNTS), len(COUNTS)).fill_diagonal_(size)
    right = torch.arange(len(COUNTS))
    loss = WeightedLoss(CASES[name].make(torch.tensor(COUNTS)), torch.tensor(COUNTS))
    for labels in (right, right.flip(0)):
        for targets in (Targets(labels), Targets(torch.stack([labels, right], dim=1), torch.full((6, 2), 0.5))):
            found = value_and_gradients(lambda z, h, t=targets: loss(z, t, h), logits, torch.ones(6, 3))
            assert all(tensor.isfinite().all() for tensor in found)


@every_loss
def test_labels_without_images_have_no_nan(name):
    """WeightedLoss ignores them: no 0 * nan."""
    empty = COUNTS.index(0)
    logits, features, _ = problem(seed=5)
    targets = Targets(torch.full((len(logits),), empty))
    value, *gradients = fast(CASES[name], Problem(logits, features, targets))
    assert value == 0
    assert all(gradient.count_nonzero() == 0 for gradient in gradients)


@pytest.mark.parametrize(
    'name', ['balanced_softmax', 'logit_adjustment', 'vector_scaling', 'class_dependent_temperatures']
)
def test_a_class_without_images_is_left_out_of_the_softmax(name):
    loss = CASES[name].make(torch.tensor(COUNTS))
    empty = COUNTS.index(0)
    logits, _, _ = problem(seed=3)
    labels = torch.arange(len(logits)) % len(COUNTS)
    losses, gradient, _ = value_and_gradients(lambda z, h: loss(z, labels).sum(), logits)
    assert losses.isfinite()
    assert gradient[:, empty].count_nonzero() == 0
    assert gradient[labels == empty].count_nonzero() == 0
    assert (loss(logits, labels)[labels == empty] == 0).all()


@every_loss
def test_constants_are_not_in_the_state_dict(name):
    assert not CASES[name].make(torch.tensor(COUNTS)).state_dict()


@pytest.mark.parametrize('counts', [[0, 0], [3, -1], [[1, 2]]])
@pytest.mark.parametrize(
    'name', ['balanced_softmax', 'ldam', 'seesaw', 'softmax_equalization', 'label_aware_smoothing']
)
def test_invalid_counts_raise(name, counts):
    with pytest.raises(ValueError, match='class_counts'):
        CASES[name].make(torch.tensor(counts))
