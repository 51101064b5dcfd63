"""The linear classifier with a learned scale a class ('lws')."""

import torch
import torch.nn.functional as F

from lib.classifier.linear import Linear


class LearnableWeightScaling(Linear):
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
