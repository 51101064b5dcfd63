"""Sampled classes: all labels, and a uniform sample of the others."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.loss.sampled_classes import sample_rows, take_rows


@settings(max_examples=200, deadline=None)
@given(
    num_classes=st.integers(1, 60),
    cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    batch=st.integers(0, 40),
    k=st.integers(0, 3),
    fraction=st.floats(1e-4, 1.0),
    seed=st.integers(0, 2**63 - 1),
)
def test_sample_contains_all_labels(num_classes, cuts, batch, k, fraction, seed):
    first, last = sorted(int(cut * num_classes) for cut in cuts)
    classes = range(first, max(last, first + 1)) if first < num_classes else range(num_classes)
    labels = torch.randint(num_classes, (batch, k) if k else (batch,), generator=torch.Generator().manual_seed(seed))
    rows = sample_rows(labels, classes, fraction, seed)
    assert rows.dtype == torch.int64
    assert len(rows) == max(math.ceil(fraction * len(classes)), min(len(classes), labels.numel()))
    assert (rows.diff() > 0).all()
    assert not len(rows) or (rows[0] >= 0 and rows[-1] < len(classes))
    assert {label for label in labels.flatten().tolist() if label in classes} <= {
        row + classes.start for row in rows.tolist()
    }


def test_sample_is_a_function_of_its_seed():
    labels = torch.tensor([3, 50])
    torch.manual_seed(0)
    first = sample_rows(labels, range(1000), 0.1, 7)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(sample_rows(labels, range(1000), 0.1, 7), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(sample_rows(labels, range(1000), 0.1, 8), first)


def test_fraction_1_returns_all_rows():
    assert torch.equal(sample_rows(torch.tensor([2, 2]), range(5, 14), 1.0, 3), torch.arange(9))


@pytest.mark.parametrize('seed', range(3))
def test_other_classes_are_equally_likely(seed):
    """Chi-squared of 4,000 samples of 10 out of 40 classes, two of them labels: 8 of the 38 others are drawn."""
    labels, draws = torch.tensor([100, 117, 117, 5]), 4000
    counts = torch.zeros(40)
    for draw in range(draws):
        counts[sample_rows(labels, range(100, 140), 0.25, 10**6 * seed + draw)] += 1
    assert counts[0] == counts[17] == draws
    others = torch.cat([counts[1:17], counts[18:]])
    expected = draws * 8 / 38
    # Sampling without replacement has a smaller variance, by the factor 1 - 8/38, and 37 degrees of freedom.
    statistic = ((others - expected) ** 2).sum() / (expected * (1 - 8 / 38))
    assert abs(statistic - 38) < 5 * math.sqrt(2 * 38), f'seed {seed}: {statistic}'


@pytest.mark.parametrize('shape', [(9,), (9, 4)])
def test_take_rows_equals_indexing(shape):
    random = torch.Generator().manual_seed(3)
    tensor = torch.randn(shape, dtype=torch.float64, generator=random)
    rows = torch.tensor([0, 2, 3, 8])
    upstream = torch.randn(4, *shape[1:], dtype=torch.float64, generator=random)
    gradients = []
    for take in (take_rows, lambda tensor, rows: tensor[rows]):
        leaf = tensor.clone().requires_grad_()
        taken = take(leaf, rows)
        torch.testing.assert_close(taken, tensor[rows], rtol=0, atol=0)
        taken.backward(upstream)
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert torch.autograd.gradcheck(take_rows, (tensor.requires_grad_(), rows))
