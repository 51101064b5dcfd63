"""Rows of a sharded classifier: taken from the state of a model, of its average and of the optimizer, and put back."""

from collections.abc import Iterable
from typing import Any

import torch

from lib.errors import UserError, shown

CLASSIFIER_PREFIX = 'classifier.'
_TRAINING, _OPTIMIZER = 'training.', 'optimizer.'
Tensors = dict[str, torch.Tensor]


def take_classifier_rows(
    state: Tensors, training: Tensors | None, optimizer: dict[str, Any], names: dict[int, str]
) -> tuple[Tensors, Tensors | None, dict[str, Any], Tensors]:
    """Return (state, training, optimizer, rows): the three without the classifier's rows, and these rows.

    The optimizer state lists under 'rows' which index each classifier parameter had.

    Args:
        names: names of the classifier's parameters (`classifier.weight`) by their index in the optimizer state.
    """
    rows = {name: tensor for name, tensor in state.items() if name.startswith(CLASSIFIER_PREFIX)}
    if training is not None:
        rows |= {_TRAINING + name: tensor for name, tensor in training.items() if name.startswith(CLASSIFIER_PREFIX)}
    remaining = {}
    for index, values in optimizer['state'].items():
        if index not in names:
            remaining[index] = values
            continue
        length = len(state[names[index]])
        is_rows = {key: torch.is_tensor(value) and value.shape[:1] == (length,) for key, value in values.items()}
        rows |= {f'{_OPTIMIZER}{names[index]}.{key}': value for key, value in values.items() if is_rows[key]}
        remaining[index] = {key: value for key, value in values.items() if not is_rows[key]}
    optimizer = optimizer | {'state': remaining, 'rows': {name: index for index, name in names.items()}}
    return _without_classifier(state), training and _without_classifier(training), optimizer, rows


def put_classifier_rows(
    state: Tensors, training: Tensors | None, optimizer: dict[str, Any] | None, rows: Tensors
) -> tuple[Tensors, Tensors | None, dict[str, Any] | None]:
    """Return (state, training, optimizer) with the rows put back; the inverse of `take_classifier_rows`.

    Raises:
        UserError: a row belongs to a parameter without optimizer state.
    """
    of_state = {name: tensor for name, tensor in rows.items() if name.startswith(CLASSIFIER_PREFIX)}
    of_training = {name.removeprefix(_TRAINING): tensor for name, tensor in rows.items() if name.startswith(_TRAINING)}
    if optimizer is not None:
        states = {index: dict(values) for index, values in optimizer['state'].items()}
        indices = optimizer.get('rows', {})
        for name, tensor in rows.items():
            if name.startswith(_OPTIMIZER):
                parameter, _, key = name.removeprefix(_OPTIMIZER).rpartition('.')
                if parameter not in indices:
                    raise UserError(f'the shards of the classifier hold {shown(name)}, which is not in the checkpoint')
                states.setdefault(indices[parameter], {})[key] = tensor
        optimizer = {name: value for name, value in optimizer.items() if name != 'rows'} | {'state': states}
    return state | of_state, training and training | of_training, optimizer


def names_by_index(
    optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, torch.nn.Parameter]]
) -> dict[int, str]:
    """Return the names of the given parameters by their index in the optimizer's state."""
    name_of = {id(parameter): name for name, parameter in parameters}
    ordered = [parameter for group in optimizer.param_groups for parameter in group['params']]
    return {index: name_of[id(parameter)] for index, parameter in enumerate(ordered) if id(parameter) in name_of}


def _without_classifier(state: Tensors) -> Tensors:
    return {name: tensor for name, tensor in state.items() if not name.startswith(CLASSIFIER_PREFIX)}
