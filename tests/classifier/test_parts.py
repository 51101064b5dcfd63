"""Classifiers as factors, and classifiers that hold the rows of some classes."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.classifier import rows as draw
from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import LearnableWeightScaling, LinearClassifier

MAKES = {
    'linear': LinearClassifier,
    'cosine': lambda num_features, num_classes, **options: CosineClassifier(num_features, num_classes, 16.0, **options),
    'lws': LearnableWeightScaling,
}
every_classifier = pytest.mark.parametrize('make', MAKES.values(), ids=MAKES)
# Numbers in all, from fewer than sixteen to a little over a block (cut to 64 numbers here), odd ones among them.
SIZES = [(1, 1), (3, 5), (1, 16), (17, 1), (31, 3), (64, 1), (79, 1), (80, 1), (81, 1), (43, 3), (129, 5), (200, 16)]


def scaled(make):
    """A classifier whose scales and biases are not what they begin with."""
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
def test_the_whole_begins_as_torchs_layers(num_classes, num_features):
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
def test_a_part_begins_with_its_rows_of_the_whole(make, num_classes, num_features, monkeypatch):
    monkeypatch.setattr(draw, '_BLOCK', 64)
    torch.manual_seed(3)
    whole = make(num_features, num_classes)
    expected_next = torch.randn(20)
    cuts = sorted({0, num_classes // 3, num_classes // 3 + 1, num_classes})
    for start, stop in itertools.pairwise(cuts):
        torch.manual_seed(3)
        part = make(num_features, num_classes, classes=range(start, stop))
        assert torch.equal(torch.randn(20), expected_next)  # what is drawn afterwards is the same as well
        assert (part.num_classes, part.classes) == (num_classes, range(start, stop))
        for name, rows in part.state_dict().items():
            assert torch.equal(rows, whole.state_dict()[name][start:stop])


def test_a_part_begins_so_at_the_real_block_size():
    num_classes, num_features = 2_100, 1_001  # two blocks and a little
    torch.manual_seed(3)
    whole = CosineClassifier(num_features, num_classes, 16.0)
    torch.manual_seed(3)
    part = CosineClassifier(num_features, num_classes, 16.0, classes=range(1_000, 2_099))
    assert torch.equal(part.weight, whole.weight[1_000:2_099])


@every_classifier
def test_parts_give_their_columns_of_the_logits(make):
    torch.manual_seed(1)
    whole, features = make(5, 9), torch.randn(4, 5)
    parts = []
    for classes in (range(2), range(2, 3), range(3, 9)):
        part = make(5, 9, classes=classes)
        part.load_state_dict({name: rows[classes.start : classes.stop] for name, rows in whole.state_dict().items()})
        parts.append(part(features))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole(features))


@pytest.mark.parametrize('classes', [range(0), range(3, 3), range(2, 10), range(-1, 4), range(0, 9, 2)])
@every_classifier
def test_a_part_that_is_none_is_refused(make, classes):
    with pytest.raises(ValueError, match='no part of 9 classes'):
        make(5, 9, classes=classes)
