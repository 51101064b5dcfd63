"""What contrastive losses compare: features and classes in a space of their own."""

import torch
from torch import nn

from lib.classifier.cosine import unit


class Projector(nn.Module):
    """Two perceptrons into one space: of features, and of the classifier's rows (BCL: Zhu et al., CVPR 2022).

    Each is linear, BatchNorm, ReLU, linear, as wide as the features within, as in its authors' code. Both outputs are
    float32, of length 1. The rows take num_classes * num_features numbers a layer and step.

    Args:
        num_features: of features and of the classifier's rows.
        width: of what is compared.
    """

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.features = _perceptron(num_features, width)
        self.rows = _perceptron(num_features, width)

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (batch, width) of features (batch, num_features)."""
        return unit(self.features(features))

    def prototypes(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the prototypes (num_classes, width) of a classifier's weight (num_classes, num_features)."""
        return unit(self.rows(weight))


def _perceptron(num_features: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_features, num_features),
        nn.BatchNorm1d(num_features),
        nn.ReLU(inplace=True),
        nn.Linear(num_features, width),
    )
