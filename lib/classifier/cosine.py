"""The cosine classifier ('FCNorm').

What contrastive losses compare: features and classes in a space of their own.
"""

import torch
import torch.nn.functional as F
from torch import nn

from lib.classifier.rows import draw_rows, held_classes

TINY = 1e-24  # a squared norm at which a vector counts as zero


class CosineClassifier(nn.Module):
    """Cosine classifier, z_j = scale * cos(w_j, f) (Gidaris & Komodakis, CVPR 2018, eq. 2), without bias.

    Features (batch, num_features) -> logits (batch, num_classes) in [-scale, scale]; `weight` is
    (num_classes, num_features). A zero vector has cosine 0 with everything, and zero gradient.

    Args:
        classes: hold the rows of these alone, which begin as those of the whole classifier; None: all.
    """

    def __init__(self, num_features: int, num_classes: int, scale: float, *, classes: range | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classes = held_classes(classes, num_classes)
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(len(self.classes), num_features))
        std = num_features**-0.5  # rows of about unit length; their direction is uniform
        with torch.no_grad():
            draw_rows(self.weight, self.classes, num_classes, lambda numbers: numbers.normal_(std=std))

    def factors(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return x (batch, num_features), weight and no bias: the logits are x weight^T."""
        # The scale goes onto the features: (batch, num_features) is smaller than (batch, num_classes).
        return unit(features) * self.scale, unit(self.weight), None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(*self.factors(features))

    def extra_repr(self) -> str:
        sizes = f'num_features={self.weight.shape[1]}, num_classes={self.num_classes}, classes={self.classes}'
        return f'{sizes}, scale={self.scale}'


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Return the rows of `vectors` (n, d) scaled to length 1, in float32 or better; zero rows stay zero.

    F.normalize would divide by 1e-12 there, and blow up the gradient as much.
    """
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()  # bfloat16 sums lose the norm
    squares = vectors.square().sum(dim=-1, keepdim=True)  # (n, 1)
    return vectors * squares.masked_fill(squares <= TINY, torch.inf).rsqrt()


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
