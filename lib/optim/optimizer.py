"""Optimisers by name, with the parameters that are not decayed in a group of their own."""

import torch
from torch import nn

from lib.errors import UserError

KINDS = ('sgd', 'adam', 'adamw')


def create_optimizer(
    model: nn.Module,
    *,
    kind: str,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    decay_norm_and_bias: bool = True,
) -> torch.optim.Optimizer:
    """Create an optimiser over the parameters of `model` that require gradients.

    kind: 'sgd' (uses momentum, nesterov), 'adam' (weight decay in the gradient) or 'adamw' (decoupled,
    Loshchilov & Hutter, ICLR 2019); both use betas. Without `decay_norm_and_bias`, vectors and scalars (the
    scale and shift of norms, biases) are not decayed.

    Raises UserError for an unknown kind, and for Nesterov without momentum.
    """
    groups = parameter_groups(model, weight_decay=weight_decay, decay_norm_and_bias=decay_norm_and_bias)
    if kind == 'sgd':
        if nesterov and momentum <= 0:
            raise UserError(f'OPTIMIZER.NESTEROV True needs OPTIMIZER.MOMENTUM above 0, not {momentum}')
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
    if kind == 'adam':
        return torch.optim.Adam(groups, lr=lr, betas=tuple(betas))
    if kind == 'adamw':
        return torch.optim.AdamW(groups, lr=lr, betas=tuple(betas))
    raise UserError(f"OPTIMIZER.TYPE '{kind}' is not known; allowed are {', '.join(KINDS)}")


def parameter_groups(model: nn.Module, *, weight_decay: float, decay_norm_and_bias: bool) -> list[dict]:
    """Return one group of decayed parameters and one of the others; an empty group is left out."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if decay_norm_and_bias or parameter.ndim > 1]
    others = [parameter for parameter in trained if not decay_norm_and_bias and parameter.ndim <= 1]
    groups = [
        {'params': decayed, 'weight_decay': weight_decay},
        {'params': others, 'weight_decay': 0.0},
    ]
    return [group for group in groups if group['params']]
