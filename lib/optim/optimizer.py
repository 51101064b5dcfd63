"""Optimizers by name, their parameter groups, and hooks on their state and step.

Fused kernels read parameter, gradient and state by memory address, element by element, with few checks: on the CPU, a
state with other strides than its parameter silently gives wrong weights. `register_load_hooks` prevents that.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lib.errors import UserError

_MOMENTS = {'step', 'exp_avg', 'exp_avg_sq'}
_STATES = {torch.optim.SGD: {'momentum_buffer'}, torch.optim.Adam: _MOMENTS, torch.optim.AdamW: _MOMENTS}


def register_load_hooks(optimizer: torch.optim.Optimizer) -> None:
    """Make load_state_dict accept states of any implementation (fused, foreach), memory format and options.

    The options of the parameter groups (weight decay, fused, lr_scale, ...) stay those of `optimizer`. A state of other
    parameters or of another optimizer is a ValueError.
    """
    optimizer.register_load_state_dict_pre_hook(_keep_options)
    if not isinstance(optimizer, torch.optim.LBFGS):
        optimizer.register_load_state_dict_post_hook(_check_state)
    optimizer.register_load_state_dict_post_hook(_match_strides)


def init_momentum_with_zeros(optimizer: torch.optim.SGD) -> None:
    """Initialize momentum buffers with zeros before the step that first needs them, which gives the same first step.

    torch's fused SGD allocates them uninitialized, for all parameters at once: they would stay uninitialized if the
    gradient scaler skips the first step, and a parameter whose first gradient comes later would be an error.
    """
    optimizer.register_step_pre_hook(_start_momentum)


def _keep_options(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    # Before loading: torch moves the step counts of Adam to the device if the loaded group is fused.
    groups = [
        {**group, 'params': saved['params']}
        for group, saved in zip(optimizer.param_groups, state['param_groups'], strict=True)
    ]
    return {**state, 'param_groups': groups}


def _check_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError for values that the kernels would read or write beyond their end."""
    names = _STATES.get(type(optimizer), set())
    for group in optimizer.param_groups:
        for parameter in group['params']:
            state = {name: value for name, value in optimizer.state.get(parameter, {}).items() if value is not None}
            missing = names - state.keys() - {'momentum_buffer'}  # which starts with zeros
            if state and missing:
                raise ValueError(f'the state lacks {", ".join(missing)}')
            for name in names & state.keys():  # SGD ignores the rest, such as the state of Adam
                shape, value = () if name == 'step' else parameter.shape, state[name]
                tensor = torch.tensor(value) if isinstance(value, float) else value
                if not isinstance(tensor, torch.Tensor) or tensor.shape != shape or not tensor.is_floating_point():
                    raise ValueError(f'the state {name} is not that of a parameter of shape {tuple(parameter.shape)}')


def _match_strides(optimizer: torch.optim.Optimizer) -> None:
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


def layer_lr_scales(backbone: nn.Module, decay: float, *, name: str) -> dict[str, float]:
    """Return the learning rate factor of each parameter of `backbone`: decay ** (number of blocks to the classifier).

    Layer-wise decay (Clark et al., ICLR 2020, ELECTRA; Bao et al., ICLR 2022, BEiT): 1 for the classifier, `decay` for
    the last block, and so on down to the stem. Blocks are those of timm's `group_matcher`; parameters that it assigns
    to the classifier, such as a last norm, have the factor 1.

    Args:
        name: MODEL.BACKBONE, for the error message.

    Raises:
        UserError: the backbone defines no blocks.
    """
    group_matcher = getattr(backbone, 'group_matcher', None)
    if group_matcher is None:
        raise _no_blocks(decay, name)
    from timm.models import group_parameters  # imported here: it takes seconds, see lib/backbone/create.py

    keys = [key for key, _ in backbone.named_parameters()]
    # The backbone was built without its classifier: add the name of one, to be grouped with the rest.
    prefix = (getattr(backbone, 'pretrained_cfg', None) or {}).get('classifier') or 'head'
    classifier = f'{prefix if isinstance(prefix, str) else prefix[0]}.weight'
    # group_parameters only calls named_parameters.
    names: Any = SimpleNamespace(named_parameters=lambda: [(key, None) for key in (*keys, classifier)])
    layers = group_parameters(names, group_matcher(coarse=False), reverse=True)
    last = layers[classifier]
    if last == 0:
        raise _no_blocks(decay, name)
    return {key: decay ** max(0, last - layers[key]) for key in keys}


def _no_blocks(decay: float, name: str) -> UserError:
    return UserError(
        f'OPTIMIZER.LAYER_DECAY is {decay:g}, but MODEL.BACKBONE {name} defines no blocks: '
        'set --OPTIMIZER_LAYER_DECAY 1, or choose another backbone'
    )


def project_to_max_norm(
    optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, max_norm: float
) -> RemovableHandle:
    """Register a hook that scales rows of `weight` (n, d) longer than `max_norm` to that norm after each step.

    This is projected gradient descent onto |w_j|_2 <= max_norm (MaxNorm: Alshammari et al., CVPR 2022). The limit is
    the same for all rows; the authors' code takes it from the initial norms of the layer.
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
    """Create an optimizer over the parameters of `model` that require gradients.

    Args:
        kind: 'sgd' (uses momentum, nesterov), 'adam' (weight decay in the gradient) or 'adamw' (decoupled weight decay,
            Loshchilov & Hutter, ICLR 2019); both use betas.
        decay_norm_and_bias: False: no weight decay for vectors and scalars (scale and shift of norms, biases).
        lr_scales: parameter name -> learning rate factor (default 1). Each group then has the option 'lr_scale', by
            which the learning rate must be multiplied when it is set.

    Raises:
        UserError: unknown kind; Nesterov without momentum.
    """
    groups = parameter_groups(
        model, weight_decay=weight_decay, decay_norm_and_bias=decay_norm_and_bias, lr_scales=lr_scales
    )
    fused = _supports_fused(groups) or None
    optimizer: torch.optim.Optimizer
    if kind == 'sgd':
        if nesterov and momentum <= 0:
            raise UserError(f'OPTIMIZER.NESTEROV True needs OPTIMIZER.MOMENTUM above 0, not {momentum}')
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
        init_momentum_with_zeros(optimizer)
    elif kind == 'adam':
        optimizer = torch.optim.Adam(groups, lr=lr, betas=(betas[0], betas[1]), fused=fused)
    elif kind == 'adamw':
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), fused=fused)
    else:
        raise UserError(f"OPTIMIZER.TYPE '{kind}' is unknown; allowed are {', '.join(KINDS)}")
    register_load_hooks(optimizer)
    return optimizer


def create_lbfgs(model: nn.Module) -> torch.optim.LBFGS:
    """Create L-BFGS (Nocedal and Wright 2006, algorithm 7.5) over the parameters of `model` that require gradients.

    A step takes up to 100 iterations, each with a line search for the strong Wolfe conditions, until the largest
    gradient is below 1e-6.
    """
    optimizer = torch.optim.LBFGS(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=1.0,
        max_iter=100,
        max_eval=200,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        history_size=20,
        line_search_fn='strong_wolfe',
    )
    register_load_hooks(optimizer)
    return optimizer


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_norm_and_bias: bool,
    lr_scales: Mapping[str, float] | None = None,
) -> list[dict]:
    """Return two groups per learning rate factor: parameters with and without weight decay.

    Groups are sorted by descending factor; empty groups are left out; without `lr_scales` no group has the option.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = ((lr_scales or {}).get(name, 1.0), decay_norm_and_bias or parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            'params': groups[scale, is_decayed],
            'weight_decay': weight_decay if is_decayed else 0.0,
            **({} if lr_scales is None else {'lr_scale': scale}),
        }
        for scale, is_decayed in sorted(groups, reverse=True)
    ]


def _supports_fused(groups: list[dict]) -> bool:
    """Return whether to use fused kernels: on CPU and CUDA, for floats; on other devices torch chooses.

    On the CPU they are the fastest. A step over the parameters of ResNet-18 / ResNeSt-50 (torch 2.14, one thread of a
    Xeon with AVX-512, median of 60): SGD 22 / 37 ms, against 25 / 53 in a loop and 34 / 83 with foreach; AdamW 29 / 46,
    against 62 / 113 and 60 / 140. On CUDA a step with a gradient scaler needs them to avoid waiting for the device.
    """
    parameters = [parameter for group in groups for parameter in group['params']]
    return all(parameter.device.type in ('cpu', 'cuda') and parameter.is_floating_point() for parameter in parameters)
