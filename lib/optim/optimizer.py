"""Optimisers by name, with the parameters that are not decayed in a group of their own.

What fused kernels ask of an optimiser's state, wherever it comes from.

They read parameter, gradient and state by memory address, element for element, and check little of it: on the CPU, a
state with other strides than its parameter gives wrong weights without a word.
Learning rates that fall from the classifier to the stem, for fine-tuning.
A limit on the norms of rows, kept after every step.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn
from torch.utils.hooks import RemovableHandle

from lib.errors import UserError


def keep_state_fit(optimizer: torch.optim.Optimizer) -> None:
    """Let states load that were saved by any implementation, in any memory format, under other options.

    The options of the groups (weight decay, fused, lr_scale, ...) stay those that `optimizer` was created with.
    """
    optimizer.register_load_state_dict_pre_hook(_keep_options)
    optimizer.register_load_state_dict_post_hook(_lay_out_as_parameters)


def start_momentum_at_zero(optimizer: torch.optim.SGD) -> None:
    """Create momentum as zeros before the step that first needs it, which gives the same first step.

    torch's fused SGD creates it without values, for all parameters at once: it would stay without them when the
    scaler passes the first step over, and a parameter whose first gradient comes later is an error.
    """
    optimizer.register_step_pre_hook(_start_momentum)


def _keep_options(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    # Done before loading: torch moves Adam's step counts to the device if the loaded group says that it is fused.
    groups = [
        {**own, 'params': saved['params']}
        for own, saved in zip(optimizer.param_groups, state['param_groups'], strict=True)
    ]
    return {**state, 'param_groups': groups}


def _lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group['params']:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if value is not None and value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _start_momentum(optimizer: torch.optim.Optimizer, *_: object) -> None:
    for group in optimizer.param_groups:
        if group['momentum'] == 0:
            continue
        for parameter in group['params']:
            if parameter.grad is not None and optimizer.state[parameter].get('momentum_buffer') is None:
                optimizer.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)


def layer_scales(backbone: nn.Module, decay: float, *, name: str) -> dict[str, float]:
    """Return the factor on the learning rate of each parameter of `backbone`: decay ** (blocks up to the classifier).

    Layer-wise decay (Clark et al., ICLR 2020, ELECTRA; Bao et al., ICLR 2022, BEiT): 1 for the classifier, `decay` for
    the last block, and so on down to the stem. What a block is, the backbone says itself, in timm's way
    (`group_matcher`); whatever it counts to its own classifier, such as a last norm, has the factor 1.

    Args:
        name: what the user calls the backbone.

    Raises:
        UserError: the backbone does not tell its blocks.
    """
    if not hasattr(backbone, 'group_matcher'):
        raise _no_blocks(decay, name)
    own = [key for key, _ in backbone.named_parameters()]
    # The backbone was built without its classifier, so one is named to be grouped with the rest.
    prefix = (getattr(backbone, 'pretrained_cfg', None) or {}).get('classifier') or 'head'
    classifier = f'{prefix if isinstance(prefix, str) else prefix[0]}.weight'
    named = SimpleNamespace(named_parameters=lambda: [(key, None) for key in (*own, classifier)])
    layers = group_parameters(named, backbone.group_matcher(coarse=False), reverse=True)
    last = layers[classifier]
    if last == 0:
        raise _no_blocks(decay, name)
    return {key: decay ** max(0, last - layers[key]) for key in own}


def _no_blocks(decay: float, name: str) -> UserError:
    return UserError(
        f'OPTIMIZER.LAYER_DECAY is {decay:g}, but MODEL.BACKBONE {name} does not tell its blocks: '
        '--OPTIMIZER_LAYER_DECAY 1, or another backbone'
    )


def keep_norms_below(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, max_norm: float) -> RemovableHandle:
    """Scale rows of `weight` (n, d) that are longer than `max_norm` down to it after each step of `optimizer`.

    That is projected gradient descent onto |w_j|_2 <= max_norm (MaxNorm: Alshammari et al., CVPR 2022). Here the limit
    is one number, while the authors' code takes it from the norms that the layer starts with.
    """

    @torch.no_grad()
    def project(*_: object) -> None:
        weight.renorm_(p=2, dim=0, maxnorm=max_norm)

    return optimizer.register_step_post_hook(project)


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
    lr_scales: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Create an optimiser over the parameters of `model` that require gradients.

    kind: 'sgd' (uses momentum, nesterov), 'adam' (weight decay in the gradient) or 'adamw' (decoupled,
    Loshchilov & Hutter, ICLR 2019); both use betas. Without `decay_norm_and_bias`, vectors and scalars (the
    scale and shift of norms, biases) are not decayed. With `lr_scales` (parameter name -> factor, else 1), each group
    has the option 'lr_scale', which whoever sets the learning rate has to multiply it by.

    Raises UserError for an unknown kind, and for Nesterov without momentum.
    """
    groups = parameter_groups(
        model, weight_decay=weight_decay, decay_norm_and_bias=decay_norm_and_bias, lr_scales=lr_scales
    )
    common = {'lr': lr, 'fused': _has_fused(groups) or None}
    if kind == 'sgd':
        if nesterov and momentum <= 0:
            raise UserError(f'OPTIMIZER.NESTEROV True needs OPTIMIZER.MOMENTUM above 0, not {momentum}')
        optimizer = torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, **common)
        start_momentum_at_zero(optimizer)
    elif kind in ('adam', 'adamw'):
        optimizer = {'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW}[kind](groups, betas=tuple(betas), **common)
    else:
        raise UserError(f"OPTIMIZER.TYPE '{kind}' is not known; allowed are {', '.join(KINDS)}")
    keep_state_fit(optimizer)
    return optimizer


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_norm_and_bias: bool,
    lr_scales: Mapping[str, float] | None = None,
) -> list[dict]:
    """Return a group of decayed parameters and one of the others for each factor on the learning rate.

    The largest factor comes first, an empty group is left out, and without `lr_scales` no group has the option.
    """
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = ((lr_scales or {}).get(name, 1.0), decay_norm_and_bias or parameter.ndim > 1)
            members.setdefault(kind, []).append(parameter)
    return [
        {
            'params': members[scale, decayed],
            'weight_decay': weight_decay if decayed else 0.0,
            **({} if lr_scales is None else {'lr_scale': scale}),
        }
        for scale, decayed in sorted(members, reverse=True)
    ]


def _has_fused(groups: list[dict]) -> bool:
    """Whether fused kernels are to be used: on CPUs and on CUDA, for floats; elsewhere torch picks by itself.

    On the CPU they are the fastest. A step over the parameters of ResNet-18 / ResNeSt-50 (torch 2.14, one thread of a
    Xeon with AVX-512, median of 60): SGD 22 / 37 ms, against 25 / 53 in a loop and 34 / 83 with foreach; AdamW 29 / 46,
    against 62 / 113 and 60 / 140. On CUDA a step with a loss scaler needs them, so as not to wait for the device.
    """
    parameters = [parameter for group in groups for parameter in group['params']]
    return all(parameter.device.type in ('cpu', 'cuda') and parameter.is_floating_point() for parameter in parameters)
