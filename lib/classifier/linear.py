"""The linear classifier ('FC'), and the one with a learned scale per class ('lws')."""

import torch
import torch.nn.functional as F
from torch import nn

from lib.classifier.base import Classifier, draw_rows


class LinearClassifier(Classifier):
    """Linear classifier, z = W f + b: features (batch, num_features) -> logits (batch, num_classes).

    `weight` is (num_classes, num_features), `bias` is (num_classes,), initialized like those of nn.Linear.

    Args:
        classes: hold only the rows of these classes, initialized like those of the whole classifier; None: all.
    """

    bias: nn.Parameter

    def __init__(self, num_features: int, num_classes: int, *, classes: range | None = None) -> None:
        super().__init__(num_features, num_classes, classes=classes)
        self.bias = nn.Parameter(torch.empty(len(self.classes)))
        bound = num_features**-0.5
        with torch.no_grad():
            for parameter in (self.weight, self.bias):
                draw_rows(parameter, self.classes, num_classes, lambda block: block.uniform_(-bound, bound))

    def factors(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return x (batch, num_features), weight and bias such that the logits are x weight^T + bias."""
        return features, self.weight, self.bias

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(*self.factors(features))


class LearnableWeightScaling(LinearClassifier):
    """Learnable weight scaling, z_j = s_j (w_j . f + b_j) (LWS: Kang et al., ICLR 2020, eq. 6).

    The paper has s_j w_j without a bias; its authors' code scales the whole output, bias included, and so does this.
    Features (batch, num_features) -> logits (batch, num_classes); `weight` is (num_classes, num_features), `bias` and
    `scale` are (num_classes,). Scales are initialized to 1, which is the linear classifier.

    Args:
        scale_only: weight and bias require no gradient, as in the paper.
        classes: hold only the rows of these classes, initialized like those of the whole classifier; None: all.
    """

    def __init__(
        self, num_features: int, num_classes: int, *, scale_only: bool = False, classes: range | None = None
    ) -> None:
        super().__init__(num_features, num_classes, classes=classes)
        self.scale = nn.Parameter(torch.ones(len(self.classes)))
        if scale_only:
            self.weight.requires_grad_(False)
            self.bias.requires_grad_(False)

    def factors(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return x (batch, num_features), weight and bias such that the logits are x weight^T + bias."""
        return features, self.weight * self.scale[:, None], self.bias * self.scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # Not by the factors: scaling the logits and their gradients is cheaper than scaling the weight.
        return F.linear(features, self.weight, self.bias) * self.scale


def without_scale(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state of the equivalent linear classifier; a state without `scale` is returned unchanged."""
    if 'scale' not in state:
        return state
    scale = state['scale']
    rest = {key: value for key, value in state.items() if key != 'scale'}
    return rest | {'weight': state['weight'] * scale[:, None], 'bias': state['bias'] * scale}
