"""Factors of classifiers, and classifiers that hold a shard of the classes."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.classifier import base
from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import LearnableWeightScaling, LinearClassifier

MAKES = {
    'linear': LinearClassifier,
    'cosine': lambda num_features, num_classes, **options: CosineClassifier(num_features, num_classes, 16.0, **options),
    'lws': LearnableWeightScaling,
}
every_classifier = pytest.mark.parametrize('make', MAKES.values(), ids=MAKES)
# Sizes from below 16 elements to slightly over a block (64 elements in these tests), including odd ones.
SIZES = [(1, 1), (3, 5), (1, 16), (17, 1), (31, 3), (64, 1), (79, 1), (80, 1), (81, 1), (43, 3), (129, 5), (200, 16)]


def scaled(make):
    """Return a classifier with random scales and biases."""
    torch.manual_seed(0)
    classifier = make(6, 11).double()
    for name, parameter in classifier.named_parameters():
        if name != 'weight':
            nn.init.normal_(parameter)
    return classifier


@every_classifier
def test_logits_are_the_product_of_the_factors(make):
    classifier = scaled(make)
    features = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    inputs = [features, *classifier.parameters()]
    upstream = torch.randn(4, 11, dtype=torch.float64)
    found, expected = F.linear(*classifier.factors(features)), classifier(features)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(('num_classes', 'num_features'), SIZES)
def test_initialization_equals_torch(num_classes, num_features):
    torch.manual_seed(7)
    expected = nn.Linear(num_features, num_classes)
    expected_next = torch.rand(1)
    torch.manual_seed(7)
    found = LinearClassifier(num_features, num_classes)
    assert torch.equal(torch.rand(1), expected_next)
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.bias, expected.bias)
    torch.manual_seed(7)
    rows = nn.init.normal_(torch.empty(num_classes, num_features), std=num_features**-0.5)
    torch.manual_seed(7)
    assert torch.equal(CosineClassifier(num_features, num_classes, 16.0).weight, rows)


@pytest.mark.parametrize(('num_classes', 'num_features'), SIZES)
@every_classifier
def test_shard_is_initialized_with_its_rows_of_the_whole(make, num_classes, num_features, monkeypatch):
    monkeypatch.setattr(base, '_BLOCK', 64)
    torch.manual_seed(3)
    whole = make(num_features, num_classes)
    expected_next = torch.randn(20)
    cuts = sorted({0, num_classes // 3, num_classes // 3 + 1, num_classes})
    for start, stop in itertools.pairwise(cuts):
        torch.manual_seed(3)
        shard = make(num_features, num_classes, classes=range(start, stop))
        assert torch.equal(torch.randn(20), expected_next)  # the generator state is the same
        assert (shard.num_classes, shard.classes) == (num_classes, range(start, stop))
        for name, rows in shard.state_dict().items():
            assert torch.equal(rows, whole.state_dict()[name][start:stop])


def test_shard_initialization_with_the_real_block_size():
    num_classes, num_features = 2_100, 1_001  # slightly over two blocks
    torch.manual_seed(3)
    whole = CosineClassifier(num_features, num_classes, 16.0)
    torch.manual_seed(3)
    shard = CosineClassifier(num_features, num_classes, 16.0, classes=range(1_000, 2_099))
    assert torch.equal(shard.weight, whole.weight[1_000:2_099])


@every_classifier
def test_shards_compute_their_columns_of_the_logits(make):
    torch.manual_seed(1)
    whole, features = make(5, 9), torch.randn(4, 5)
    logits = []
    for classes in (range(2), range(2, 3), range(3, 9)):
        shard = make(5, 9, classes=classes)
        shard.load_state_dict({name: rows[classes.start : classes.stop] for name, rows in whole.state_dict().items()})
        logits.append(shard(features))
    torch.testing.assert_close(torch.cat(logits, dim=1), whole(features))


@pytest.mark.parametrize('classes', [range(0), range(3, 3), range(2, 10), range(-1, 4), range(0, 9, 2)])
@every_classifier
def test_invalid_shard_raises(make, classes):
    with pytest.raises(ValueError, match='no contiguous subset of 9 classes'):
        make(5, 9, classes=classes)
