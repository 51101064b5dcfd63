"""What fused kernels ask of an optimiser's state, wherever it comes from.

They read parameter, gradient and state by memory address, element for element, and check little of it: on the CPU, a
state with other strides than its parameter gives wrong weights without a word.
"""

from typing import Any

import torch


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
