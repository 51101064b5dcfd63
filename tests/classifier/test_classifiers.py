"""Linear and cosine classifiers."""

import torch
import torch.nn.functional as F

from lib.classifier.cosine import CosineClassifier
from lib.classifier.linear import LinearClassifier


def test_linear_equals_the_formula():
    torch.manual_seed(0)
    classifier = LinearClassifier(5, 3)
    features = torch.randn(4, 5)
    assert {name: tuple(p.shape) for name, p in classifier.named_parameters()} == {
        'weight': (3, 5),
        'bias': (3,),
    }
    torch.testing.assert_close(classifier(features), features @ classifier.weight.T + classifier.bias)


def test_cosine_is_the_scaled_cosine():
    torch.manual_seed(1)
    classifier = CosineClassifier(5, 3, scale=16.0)
    features = 10 * torch.randn(4, 5)
    logits = classifier(features)
    assert [name for name, _ in classifier.named_parameters()] == ['weight']
    for i in range(4):
        for c in range(3):
            expected = 16 * F.cosine_similarity(features[i], classifier.weight[c], dim=0)
            torch.testing.assert_close(logits[i, c], expected)
    torch.testing.assert_close(classifier(features * 7), logits)


def test_cosine_of_a_zero_vector_is_zero_with_zero_gradient():
    classifier = CosineClassifier(5, 3, scale=16.0)
    with torch.no_grad():
        classifier.weight[1] = 0
    features = torch.randn(2, 5)
    features[0] = 0
    features.requires_grad_()
    logits = classifier(features)
    logits.sum().backward()
    assert logits[0].count_nonzero() == 0
    assert logits[:, 1].count_nonzero() == 0
    assert features.grad[0].count_nonzero() == 0
    assert classifier.weight.grad[1].count_nonzero() == 0
    assert features.grad.isfinite().all()
    assert classifier.weight.grad.isfinite().all()


def test_cosine_under_autocast_normalizes_in_float32():
    torch.manual_seed(2)
    classifier = CosineClassifier(2048, 50, scale=1.0)
    features = 1e3 * torch.rand(8, 2048)
    expected = classifier(features)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits = classifier(features.bfloat16())
    torch.testing.assert_close(logits.float(), expected, atol=1e-2, rtol=0)
