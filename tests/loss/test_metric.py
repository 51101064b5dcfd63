"""Losses of pairs and triplets against the papers' formulas, and at their limits."""

import pytest
import torch

from lib.loss.metric import batch_hard_triplet, multi_similarity, supervised_contrastive
from tests.oracles import metric as oracle

pytest.importorskip('pytorch_metric_learning')

LOSSES = {
    'triplet': (batch_hard_triplet, oracle.batch_hard_triplet),
    'multi_similarity': (multi_similarity, oracle.multi_similarity),
    'supervised_contrastive': (
        lambda: supervised_contrastive(0.1),
        lambda features, labels: oracle.supervised_contrastive(features, labels, 0.1),
    ),
}


def value_and_gradient(loss, features, labels):
    features = features.clone().requires_grad_()
    value = loss(features, labels)
    value.backward()
    return value.detach(), features.grad


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('seed', range(4))
def test_equals_the_oracle(name, seed):
    """Classes with one, two and several images; features of clear and of unclear classes."""
    create, expected = LOSSES[name]
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (12,), generator=random)
    centers = torch.randn(5, 6, generator=random, dtype=torch.float64) * (0.5 + seed % 2)
    features = centers[labels] + 0.7 * torch.randn(12, 6, generator=random, dtype=torch.float64)
    for found, wanted in zip(
        value_and_gradient(create(), features, labels), value_and_gradient(expected, features, labels), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9, msg=f'seed {seed}')


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('labels', [[0, 1, 2, 3], [1, 1, 1, 1], [0, 0]], ids=['all differ', 'all equal', 'one pair'])
def test_a_batch_without_positives_or_negatives_has_a_finite_loss(name, labels):
    features = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(1))
    value, gradient = value_and_gradient(LOSSES[name][0](), features, torch.tensor(labels))
    assert value.isfinite()
    assert gradient.isfinite().all()
    if labels == [0, 1, 2, 3]:
        assert value == 0
        assert not gradient.any()


@pytest.mark.parametrize('name', LOSSES)
def test_the_length_of_features_does_not_count_and_half_precision_is_exact_enough(name):
    random = torch.Generator().manual_seed(2)
    features, labels = torch.randn(12, 6, generator=random), torch.arange(12) % 4
    loss = LOSSES[name][0]()
    expected = loss(features, labels)
    torch.testing.assert_close(loss(features * torch.arange(1, 13)[:, None], labels), expected)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(loss(features, labels), expected)


def test_separated_classes_have_no_triplet_loss():
    features = torch.eye(6)[torch.arange(12) % 3]
    assert batch_hard_triplet()(features, torch.arange(12) % 3) == 0
