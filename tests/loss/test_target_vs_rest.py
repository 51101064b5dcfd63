"""Target and rest logits: values, gradients, blocks of rows, rows without other classes, refused uses."""

import pytest
import torch

from lib.loss import target_vs_rest as module
from lib.loss.logits import ClassConstants
from lib.loss.target_vs_rest import other_label_mask, target_and_rest_logits


def random_logits(seed, batch=5, num_classes=7, k=3):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, num_classes, dtype=torch.float64, generator=random)
    return logits, torch.randint(num_classes, (batch, k), generator=random)


def expected(logits, labels):
    """Return the label's logit and ln sum e^z of the other classes, in loops."""
    target = torch.stack([torch.stack([row[y] for y in of]) for row, of in zip(logits, labels.tolist(), strict=True)])
    rest = [
        torch.stack([torch.log(sum(torch.exp(row[j]) for j in range(len(row)) if j != y)) for y in of])
        for row, of in zip(logits, labels.tolist(), strict=True)
    ]
    return target, torch.stack(rest)


@pytest.mark.parametrize('seed', range(3))
def test_target_and_rest_equal_a_loop(seed):
    logits, labels = random_logits(seed)
    target, rest, _ = target_and_rest_logits(logits, labels)
    expected_target, expected_rest = expected(logits, labels)
    torch.testing.assert_close(target, expected_target, rtol=0, atol=0)
    torch.testing.assert_close(rest, expected_rest, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('seed', range(3))
def test_gradients_are_those_of_finite_differences(seed):
    logits, labels = random_logits(seed)
    scale = ClassConstants(torch.linspace(0.5, 2, 7, dtype=torch.float64))
    shift = ClassConstants(torch.linspace(-1, 1, 7, dtype=torch.float64))

    def function(z):
        return target_and_rest_logits(z, labels, scale=scale, shift=shift, with_mean=True)

    target, _, mean = function(logits)
    adjusted = logits * scale.like(logits) + shift.like(logits)
    torch.testing.assert_close(target, adjusted.gather(1, labels))
    torch.testing.assert_close(mean, adjusted.mean(dim=1, keepdim=True))
    assert torch.autograd.gradcheck(function, logits.requires_grad_())


def test_blocks_of_rows_change_nothing(monkeypatch):
    logits, labels = random_logits(seed=5, batch=11)
    rows_seen = []

    def spy(block):
        rows = range(block.rows.start, block.rows.stop)
        assert len(block.values) == len(rows)
        assert torch.equal(block.labels, labels[block.rows])
        assert torch.equal(block.target_logits(), block.values.gather(1, block.labels))
        rows_seen.extend(rows)
        block.values.add_(torch.tensor(rows)[:, None])

    whole = target_and_rest_logits(logits, labels, add_log_weights=spy)
    monkeypatch.setattr(module, '_BLOCK_ELEMENTS', 3 * 7)
    blocks = target_and_rest_logits(logits, labels, add_log_weights=spy)
    assert rows_seen == [*range(11), *range(11)]
    assert torch.equal(whole.target, blocks.target)
    assert torch.equal(whole.rest, blocks.rest)


def test_one_minus_p_is_accurate_near_1():
    """1 - p is e^-40 here, far below the resolution of 1 - softmax in float32."""
    logits = torch.tensor([[40.0, 0.0, 0.0]])
    target, rest, _ = target_and_rest_logits(logits, torch.tensor([0]))
    torch.testing.assert_close(rest, torch.tensor([2.0]).log())
    assert module.one_minus_p(target, rest).item() == pytest.approx(8.497e-18, rel=1e-3)


@pytest.mark.parametrize('labels', [[[0, 1]], [[0, 0]], [[1, 0]]])
def test_two_classes_and_two_labels(labels):
    logits = torch.tensor([[1.0, -2.0]], requires_grad=True)
    target, rest, _ = target_and_rest_logits(logits, torch.tensor(labels))
    expected_rest = logits.detach()[0][[1 - y for y in labels[0]]]
    torch.testing.assert_close(rest[0], expected_rest)
    (rest - target).sum().backward()
    counts = torch.bincount(torch.tensor(labels[0]), minlength=2).float()
    torch.testing.assert_close(logits.grad[0], counts.flip(0) - counts)


@pytest.mark.parametrize('labels', [[[0, 0]], [[0]]])
def test_loss_is_0_without_other_classes(labels):
    logits = torch.tensor([[3.0, 1.0]], requires_grad=True)

    def exclude_second(block):
        block.values[:, 1] = -torch.inf

    target, rest, _ = target_and_rest_logits(logits, torch.tensor(labels), add_log_weights=exclude_second)
    losses = -module.log_probability(target, rest)
    assert (losses == 0).all()
    losses.sum().backward()
    assert logits.grad.count_nonzero() == 0


def test_other_label_mask_counts_repeated_classes_once():
    found = other_label_mask(torch.tensor([[4, 4, 9], [1, 2, 3]]))
    assert found.tolist() == [
        [[False, False, True], [False, False, True], [True, False, False]],
        [[False, True, True], [True, False, True], [True, True, False]],
    ]


def test_second_derivative_raises():
    logits, labels = random_logits(seed=1)
    target, rest, _ = target_and_rest_logits(logits.requires_grad_(), labels)
    (gradient,) = torch.autograd.grad((target.sum() + rest.square().sum()), logits, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


def test_logits_are_not_modified():
    logits, labels = random_logits(seed=2)
    before = logits.clone()
    scale, shift = ClassConstants(torch.full((7,), 2.0)), ClassConstants(torch.ones(7))
    target_and_rest_logits(logits, labels, scale=scale, shift=shift, add_log_weights=lambda block: block.values.mul_(3))
    assert torch.equal(logits, before)


def test_weights_apply_to_the_other_classes_only():
    logits, labels = random_logits(seed=3, k=1)
    weighted = target_and_rest_logits(logits, labels, add_log_weights=lambda block: block.values.add_(2.0))
    plain = target_and_rest_logits(logits, labels)
    assert torch.equal(weighted.target, plain.target)
    torch.testing.assert_close(weighted.rest, plain.rest + 2)
