"""Projections of features and classifier rows into the embedding space."""

import torch

from lib.classifier.cosine import Projector


def test_outputs_are_float32_of_length_one():
    torch.manual_seed(0)
    projector = Projector(6, 4)
    features, weight = torch.randn(5, 6), torch.randn(9, 6)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outputs = projector.embed(features), projector.prototypes(weight)
    for output, rows in zip(outputs, (5, 9), strict=True):
        assert output.shape == (rows, 4)
        assert output.dtype == torch.float32
        torch.testing.assert_close(output.norm(dim=1), torch.ones(rows))


def test_features_and_rows_have_separate_mlps():
    torch.manual_seed(1)
    projector = Projector(6, 4)
    projector.prototypes(torch.randn(9, 6))[:, 0].sum().backward()
    assert all(value.grad is None for value in projector.features.parameters())
    assert all(value.grad is not None for value in projector.rows.parameters())
    assert not torch.equal(projector.features[0].weight, projector.rows[0].weight)
