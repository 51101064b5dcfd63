"""The linear classifier ('FC').

The linear classifier with a learned scale a class ('lws').
"""

import torch
import torch.nn.functional as F
from torch import nn

from lib.classifier.rows import draw_rows, held_classes


class LinearClassifier(nn.Module):
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


class LearnableWeightScaling(LinearClassifier):
    """Learnable weight scaling, z_j = s_j (w_j . f + b_j) (LWS: Kang et al., ICLR 2020, eq. 6).

    The paper writes s_j w_j and leaves the bias out; its authors' code scales the whole output, bias included, and so
    does this. Features (batch, num_features) -> logits (batch, num_classes); `weight` is (num_classes, num_features),
    `bias` and `scale` are (num_classes,). With scales of 1, where they begin, it is the linear classifier.

    Args:
        scale_only: weight and bias take no gradient, as in the paper.
        classes: hold the rows of these alone, which begin as those of the whole classifier; None: all.
    """

    def __init__(
        self, num_features: int, num_classes: int, *, scale_only: bool = False, classes: range | None = None
    ) -> None:
        super().__init__(num_features, num_classes, classes=classes)
        self.scale = torch.nn.Parameter(torch.ones(len(self.classes)))
        if scale_only:
            self.weight.requires_grad_(False)
            self.bias.requires_grad_(False)

    def factors(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return x (batch, num_features), weight and bias: the logits are x weight^T + bias."""
        return features, self.weight * self.scale[:, None], self.bias * self.scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # Not by the factors: logits are fewer numbers to scale than the weight, and so are their gradients.
        return F.linear(features, self.weight, self.bias) * self.scale


def without_scale(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state of the linear classifier that scores as this one does; a state without `scale` as it is."""
    if 'scale' not in state:
        return state
    scale = state['scale']
    rest = {key: value for key, value in state.items() if key != 'scale'}
    return rest | {'weight': state['weight'] * scale[:, None], 'bias': state['bias'] * scale}
