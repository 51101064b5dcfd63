"""The linear classifier with a learned scale a class ('lws')."""

import torch

from lib.classifier.linear import Linear


class LearnableWeightScaling(Linear):
    """Learnable weight scaling, z_j = s_j (w_j . f + b_j) (LWS: Kang et al., ICLR 2020, eq. 6).

    The paper writes s_j w_j and leaves the bias out; its authors' code scales the whole output, bias included, and so
    does this. Features (batch, num_features) -> logits (batch, num_classes); `weight` is (num_classes, num_features),
    `bias` and `scale` are (num_classes,). With scales of 1, where they begin, it is the linear classifier.

    Args:
        scale_only: weight and bias take no gradient, as in the paper.
    """

    def __init__(self, num_features: int, num_classes: int, *, scale_only: bool = False) -> None:
        super().__init__(num_features, num_classes)
        self.scale = torch.nn.Parameter(torch.ones(num_classes))
        if scale_only:
            self.weight.requires_grad_(False)
            self.bias.requires_grad_(False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features) * self.scale


def without_scale(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state of the linear classifier that scores as this one does; a state without `scale` as it is."""
    if 'scale' not in state:
        return state
    scale = state['scale']
    rest = {key: value for key, value in state.items() if key != 'scale'}
    return rest | {'weight': state['weight'] * scale[:, None], 'bias': state['bias'] * scale}
