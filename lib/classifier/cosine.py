"""The cosine classifier ('FCNorm')."""

import torch
import torch.nn.functional as F
from torch import nn

TINY = 1e-24  # a squared norm at which a vector counts as zero


class Cosine(nn.Module):
    """Cosine classifier, z_j = scale * cos(w_j, f) (Gidaris & Komodakis, CVPR 2018, eq. 2), without bias.

    Features (batch, num_features) -> logits (batch, num_classes) in [-scale, scale]; `weight` is
    (num_classes, num_features). A zero vector has cosine 0 with everything, and zero gradient.
    """

    def __init__(self, num_features: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        # Rows of about unit length; their direction is uniform.
        nn.init.normal_(self.weight, std=num_features**-0.5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # The scale goes onto the features: (batch, num_features) is smaller than (batch, num_classes).
        return F.linear(unit(features) * self.scale, unit(self.weight))

    def extra_repr(self) -> str:
        num_classes, num_features = self.weight.shape
        return f'num_features={num_features}, num_classes={num_classes}, scale={self.scale}'


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Return the rows of `vectors` (n, d) scaled to length 1, in float32 or better; zero rows stay zero.

    F.normalize would divide by 1e-12 there, and blow up the gradient as much.
    """
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()  # bfloat16 sums lose the norm
    squares = vectors.square().sum(dim=-1, keepdim=True)  # (n, 1)
    return vectors * squares.masked_fill(squares <= TINY, torch.inf).rsqrt()
