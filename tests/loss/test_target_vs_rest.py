"""The primitive: gradients, half precision, rows that have no other class, and what it refuses."""

import pytest
import torch

from lib.loss import target_vs_rest as primitive
from lib.loss.logits import ClassConstants
from lib.loss.target_vs_rest import other_label_mask, target_and_rest_logits


def numbers(seed, batch=5, num_classes=7, k=3):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, num_classes, dtype=torch.float64, generator=random)
    return logits, torch.randint(num_classes, (batch, k), generator=random)


def expected(logits, labels):
    """The label's logit and ln sum e^ of the others, one by one."""
    own = torch.stack([torch.stack([row[y] for y in of]) for row, of in zip(logits, labels.tolist(), strict=True)])
    others = [
        torch.stack([torch.log(sum(torch.exp(row[j]) for j in range(len(row)) if j != y)) for y in of])
        for row, of in zip(logits, labels.tolist(), strict=True)
    ]
    return own, torch.stack(others)


@pytest.mark.parametrize('seed', range(3))
def test_own_and_others(seed):
    logits, labels = numbers(seed)
    own, others, _ = target_and_rest_logits(logits, labels)
    expected_own, expected_others = expected(logits, labels)
    torch.testing.assert_close(own, expected_own, rtol=0, atol=0)
    torch.testing.assert_close(others, expected_others, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('seed', range(3))
def test_gradients_are_those_of_finite_differences(seed):
    logits, labels = numbers(seed)
    scale = ClassConstants(torch.linspace(0.5, 2, 7, dtype=torch.float64))
    shift = ClassConstants(torch.linspace(-1, 1, 7, dtype=torch.float64))

    def function(z):
        return target_and_rest_logits(z, labels, scale=scale, shift=shift, with_mean=True)

    own, _, mean = function(logits)
    adjusted = logits * scale.like(logits) + shift.like(logits)
    torch.testing.assert_close(own, adjusted.gather(1, labels))
    torch.testing.assert_close(mean, adjusted.mean(dim=1, keepdim=True))
    assert torch.autograd.gradcheck(function, logits.requires_grad_())


def test_blocks_of_rows_change_nothing(monkeypatch):
    logits, labels = numbers(seed=5, batch=11)
    rows_seen = []

    def spy(block):
        rows = range(block.rows.start, block.rows.stop)
        assert len(block.values) == len(rows)
        assert torch.equal(block.labels, labels[block.rows])
        assert torch.equal(block.own(), block.values.gather(1, block.labels))
        rows_seen.extend(rows)
        block.values.add_(torch.tensor(rows)[:, None])

    whole = target_and_rest_logits(logits, labels, weigh=spy)
    monkeypatch.setattr(primitive, '_BLOCK_NUMBERS', 3 * 7)
    blocks = target_and_rest_logits(logits, labels, weigh=spy)
    assert rows_seen == [*range(11), *range(11)]
    assert torch.equal(whole.own, blocks.own)
    assert torch.equal(whole.others, blocks.others)


def test_the_others_keep_their_digits_beside_a_sure_label():
    """1 - p is e^-40 here, far below what 1 - softmax could say in float32."""
    logits = torch.tensor([[40.0, 0.0, 0.0]])
    own, others, _ = target_and_rest_logits(logits, torch.tensor([0]))
    torch.testing.assert_close(others, torch.tensor([2.0]).log())
    assert primitive.one_minus_p(own, others).item() == pytest.approx(8.497e-18, rel=1e-3)


@pytest.mark.parametrize('labels', [[[0, 1]], [[0, 0]], [[1, 0]]])
def test_two_classes_and_two_labels(labels):
    logits = torch.tensor([[1.0, -2.0]], requires_grad=True)
    own, others, _ = target_and_rest_logits(logits, torch.tensor(labels))
    expected_others = logits.detach()[0][[1 - y for y in labels[0]]]
    torch.testing.assert_close(others[0], expected_others)
    (others - own).sum().backward()
    counts = torch.bincount(torch.tensor(labels[0]), minlength=2).float()
    torch.testing.assert_close(logits.grad[0], counts.flip(0) - counts)


@pytest.mark.parametrize('labels', [[[0, 0]], [[0]]])
def test_no_other_class_is_no_loss(labels):
    logits = torch.tensor([[3.0, 1.0]], requires_grad=True)

    def only_first(block):
        block.values[:, 1] = -torch.inf

    own, others, _ = target_and_rest_logits(logits, torch.tensor(labels), weigh=only_first)
    losses = -primitive.log_probability(own, others)
    assert (losses == 0).all()
    losses.sum().backward()
    assert logits.grad.count_nonzero() == 0


def test_counted_pairs():
    found = other_label_mask(torch.tensor([[4, 4, 9], [1, 2, 3]]))
    assert found.tolist() == [
        [[False, False, True], [False, False, True], [True, False, False]],
        [[False, True, True], [True, False, True], [True, True, False]],
    ]


def test_a_second_derivative_is_refused():
    logits, labels = numbers(seed=1)
    own, others, _ = target_and_rest_logits(logits.requires_grad_(), labels)
    (gradient,) = torch.autograd.grad((own.sum() + others.square().sum()), logits, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


def test_logits_are_left_as_they_are():
    logits, labels = numbers(seed=2)
    before = logits.clone()
    scale, shift = ClassConstants(torch.full((7,), 2.0)), ClassConstants(torch.ones(7))
    target_and_rest_logits(logits, labels, scale=scale, shift=shift, weigh=lambda block: block.values.mul_(3))
    assert torch.equal(logits, before)


def test_weights_are_of_the_other_classes_alone():
    logits, labels = numbers(seed=3, k=1)
    weighed = target_and_rest_logits(logits, labels, weigh=lambda block: block.values.add_(2.0))
    plain = target_and_rest_logits(logits, labels)
    assert torch.equal(weighed.own, plain.own)
    torch.testing.assert_close(weighed.others, plain.others + 2)
