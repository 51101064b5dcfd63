"""The linear classifier ('FC')."""

import torch
import torch.nn.functional as F
from torch import nn

from lib.classifier.draw import draw_rows, held_classes


class Linear(nn.Module):
    """Linear classifier, z = W f + b: features (batch, num_features) -> logits (batch, num_classes).

    `weight` is (num_classes, num_features), `bias` is (num_classes,). They begin as those of nn.Linear.

    Args:
        classes: hold the rows of these alone, which begin as those of the whole classifier; None: all.
    """

    def __init__(self, num_features: int, num_classes: int, *, classes: range | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classes = held_classes(classes, num_classes)
        self.weight = nn.Parameter(torch.empty(len(self.classes), num_features))
        self.bias = nn.Parameter(torch.empty(len(self.classes)))
        bound = num_features**-0.5
        with torch.no_grad():
            for parameter in (self.weight, self.bias):
                draw_rows(parameter, self.classes, num_classes, lambda numbers: numbers.uniform_(-bound, bound))

    def factors(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return x (batch, num_features), weight and bias: the logits are x weight^T + bias."""
        return features, self.weight, self.bias

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(*self.factors(features))

    def extra_repr(self) -> str:
        return f'num_features={self.weight.shape[1]}, num_classes={self.num_classes}, classes={self.classes}'
