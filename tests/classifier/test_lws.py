"""Learnable weight scaling."""

import torch

from lib.classifier.base import transfer_rows
from lib.classifier.linear import LearnableWeightScaling, LinearClassifier, without_scale


def scaled():
    torch.manual_seed(0)
    classifier = LearnableWeightScaling(5, 3)
    with torch.no_grad():
        classifier.scale.copy_(torch.tensor([0.5, -2.0, 3.0]))
    return classifier


def test_logits_are_scaled_including_the_bias():
    classifier, features = scaled(), torch.randn(4, 5)
    logits = classifier(features)
    for image in range(4):
        for c in range(3):
            expected = classifier.scale[c] * (features[image] @ classifier.weight[c] + classifier.bias[c])
            torch.testing.assert_close(logits[image, c], expected)


def test_initial_logits_are_those_of_the_linear_classifier():
    torch.manual_seed(1)
    linear, classifier = LinearClassifier(5, 3), LearnableWeightScaling(5, 3)
    state, new = transfer_rows(classifier.state_dict(), linear.state_dict(), ['a', 'b', 'c'], ['a', 'b', 'c'])
    classifier.load_state_dict(state)
    assert not new
    assert sorted(state) == ['bias', 'scale', 'weight']
    features = torch.randn(4, 5)
    assert torch.equal(classifier(features), linear(features))


def test_scale_only_trains_only_scales():
    classifier = LearnableWeightScaling(5, 3, scale_only=True)
    classifier(torch.randn(4, 5)).square().sum().backward()
    assert [name for name, value in classifier.named_parameters() if value.requires_grad] == ['scale']
    assert classifier.scale.grad.count_nonzero() == 3
    assert all(value.requires_grad for value in LearnableWeightScaling(5, 3).parameters())


def test_without_scale_gives_an_equivalent_linear_classifier():
    classifier, linear, features = scaled(), LinearClassifier(5, 3), torch.randn(4, 5)
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    linear.load_state_dict(without_scale(classifier.state_dict()))
    torch.testing.assert_close(linear(features), classifier(features))
    assert all(torch.equal(value, before[key]) for key, value in classifier.state_dict().items())
    assert without_scale(linear.state_dict()).keys() == {'weight', 'bias'}
