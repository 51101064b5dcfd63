"""Balanced contrastive loss against its oracle, in limiting cases and for extreme values."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.loss.balanced_contrastive import BalancedContrastive
from tests.oracles.contrastive import balanced_contrastive as oracle


def problem(labels, num_classes, seed, width=4):
    random = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(labels) + num_classes, width, dtype=torch.float64, generator=random)
    vectors = F.normalize(vectors, dim=1)
    return vectors[: len(labels)], vectors[len(labels) :], torch.tensor(labels)


def value_and_gradients(loss, embeddings, prototypes, labels):
    embeddings, prototypes = embeddings.clone().requires_grad_(), prototypes.clone().requires_grad_()
    value = loss(embeddings, prototypes, labels)
    value.backward()
    return value.detach(), embeddings.grad, prototypes.grad


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=9),
    temperature=st.sampled_from([0.07, 0.1, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_oracle(labels, temperature, seed):
    """Including classes with no, one and several images."""
    inputs = problem(labels, 5, seed)
    found = value_and_gradients(BalancedContrastive(temperature), *inputs)
    expected = value_and_gradients(lambda e, p, y: oracle(e, p, y, temperature), *inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_one_image_is_cross_entropy_over_the_prototypes():
    embeddings, prototypes, labels = problem([2], 6, seed=1)
    found = value_and_gradients(BalancedContrastive(0.1), embeddings, prototypes, labels)
    expected = value_and_gradients(lambda e, p, y: F.cross_entropy(e @ p.T / 0.1, y), embeddings, prototypes, labels)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_weight_of_a_class_does_not_depend_on_its_images():
    """Class averaging: with every embedding equal to its prototype the loss is cross entropy over the prototypes."""
    _, prototypes, labels = problem([0, 0, 0, 0, 1, 3, 3], 5, seed=2)
    embeddings = prototypes[labels]
    found = BalancedContrastive(0.1)(embeddings, prototypes, labels)
    torch.testing.assert_close(found, F.cross_entropy(embeddings @ prototypes.T / 0.1, labels), rtol=1e-9, atol=0)


def test_equal_embeddings_are_finite():
    same = F.normalize(torch.ones(6, 4), dim=1).requires_grad_()
    prototypes = F.normalize(torch.ones(3, 4), dim=1).requires_grad_()
    value = BalancedContrastive(1e-3)(same, prototypes, torch.tensor([0, 0, 0, 0, 1, 1]))
    value.backward()
    # The three classes have equal weight and equal similarity: the loss is ln 3.
    assert value.item() == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-3)
    assert same.grad.isfinite().all()
    assert prototypes.grad.isfinite().all()


def test_autocast_computes_in_float32():
    embeddings, prototypes, labels = problem([0, 1, 1, 3], 5, seed=3)
    expected = BalancedContrastive(0.1)(embeddings, prototypes, labels)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = BalancedContrastive(0.1)(embeddings.float(), prototypes.float(), labels)
        rounded = BalancedContrastive(0.1)(embeddings.bfloat16(), prototypes.bfloat16(), labels)
    assert found.dtype == rounded.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_holds_at_fifty_thousand_classes():
    embeddings, prototypes, labels = problem([0, 0, 50_029, 7], 50_030, seed=4)
    value, *gradients = value_and_gradients(BalancedContrastive(0.1), embeddings.float(), prototypes.float(), labels)
    expected, *_ = value_and_gradients(BalancedContrastive(0.1), embeddings, prototypes, labels)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients)
