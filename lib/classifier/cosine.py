"""The cosine classifier ('FCNorm'), and the projections that contrastive losses compare."""

import torch
import torch.nn.functional as F
from torch import nn

from lib.classifier.base import Classifier, draw_rows

TINY = 1e-24  # squared norm up to which a vector is treated as zero


class CosineClassifier(Classifier):
    """Cosine classifier, z_j = scale * cos(w_j, f) (Gidaris & Komodakis, CVPR 2018, eq. 2), without bias.

    Features (batch, num_features) -> logits (batch, num_classes) in [-scale, scale]; `weight` is
    (num_classes, num_features). A zero vector has cosine 0 with every vector, and zero gradient.

    Args:
        classes: hold only the rows of these classes, initialized like those of the whole classifier; None: all.
    """

    def __init__(self, num_features: int, num_classes: int, scale: float, *, classes: range | None = None) -> None:
        super().__init__(num_features, num_classes, classes=classes)
        self.scale = scale
        std = num_features**-0.5  # rows of about unit length, with uniform direction
        with torch.no_grad():
            draw_rows(self.weight, self.classes, num_classes, lambda block: block.normal_(std=std))

    def factors(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return x (batch, num_features), weight and None such that the logits are x weight^T."""
        # Features are scaled, because (batch, num_features) is smaller than (batch, num_classes).
        return unit(features) * self.scale, unit(self.weight), None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(*self.factors(features))

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, scale={self.scale}'


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Return the rows of `vectors` (n, d) normalized to length 1, in float32 or better; zero rows stay zero.

    F.normalize would divide zero rows by 1e-12, and multiply their gradient by 1e12.
    """
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()  # bfloat16 sums are too inexact
    squares = vectors.square().sum(dim=-1, keepdim=True)  # (n, 1)
    return vectors * squares.masked_fill(squares <= TINY, torch.inf).rsqrt()


class Projector(nn.Module):
    """Two MLPs into one embedding space, for features and for classifier rows (BCL: Zhu et al., CVPR 2022).

    Each is linear, BatchNorm, ReLU, linear, with num_features hidden units, as in its authors' code. Both outputs are
    float32, of length 1. The rows take num_classes * num_features numbers per layer and step.

    Args:
        num_features: width of the features and of the classifier's rows.
        width: of the embeddings.
    """

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.features = _mlp(num_features, width)
        self.rows = _mlp(num_features, width)

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (batch, width) of features (batch, num_features)."""
        return unit(self.features(features))

    def prototypes(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the prototypes (num_classes, width) of a classifier's weight (num_classes, num_features)."""
        return unit(self.rows(weight))


def _mlp(num_features: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_features, num_features),
        nn.BatchNorm1d(num_features),
        nn.ReLU(inplace=True),
        nn.Linear(num_features, width),
    )
