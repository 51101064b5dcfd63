"""Which tensors of a checkpoint have a row a class: they are what ranks that share a classifier save apart."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

PREFIX = 'classifier.'
_TRAINING, _OPTIMIZER = 'training.', 'optimizer.'
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class HeadRows:
    """A rank's part of a classifier.

    Attributes:
        rows: (len(classes), ...) tensors: `classifier.weight`, `training.classifier.weight` (when an average
            predicts), `optimizer.classifier.weight.momentum_buffer`, ...
        classes: whose they are.
        num_classes: of all parts.
        rank, count: of this part, and how many there are.
    """

    rows: Tensors
    classes: range
    num_classes: int
    rank: int
    count: int


def take_rows(
    state: Tensors, training: Tensors | None, optimizer: dict[str, Any], names: dict[int, str]
) -> tuple[Tensors, Tensors | None, dict[str, Any], Tensors]:
    """Return (state, training, optimizer, rows): what is left of the three, and the rows that were in them.

    The optimiser's part notes under 'rows' which numbers they had.

    Args:
        names: of the classifier's parameters (`classifier.weight`), by their number in the optimiser's state.
    """
    rows = {name: tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    if training is not None:
        rows |= {_TRAINING + name: tensor for name, tensor in training.items() if name.startswith(PREFIX)}
    kept_states = {}
    for number, values in optimizer['state'].items():
        if number not in names:
            kept_states[number] = values
            continue
        length = len(state[names[number]])
        is_rows = {key: torch.is_tensor(value) and value.shape[:1] == (length,) for key, value in values.items()}
        rows |= {f'{_OPTIMIZER}{names[number]}.{key}': value for key, value in values.items() if is_rows[key]}
        kept_states[number] = {key: value for key, value in values.items() if not is_rows[key]}
    optimizer = optimizer | {'state': kept_states, 'rows': {name: number for number, name in names.items()}}
    return _others(state), training and _others(training), optimizer, rows


def put_rows(state: Tensors, training: Tensors | None, optimizer: dict[str, Any] | None, rows: Tensors) -> tuple:
    """Return (state, training, optimizer) with rows put back; the inverse of `take_rows`, whoever holds which rows."""
    own = {name: tensor for name, tensor in rows.items() if name.startswith(PREFIX)}
    of_training = {name.removeprefix(_TRAINING): tensor for name, tensor in rows.items() if name.startswith(_TRAINING)}
    if optimizer is not None:
        states = {number: dict(values) for number, values in optimizer['state'].items()}
        numbers = optimizer['rows']
        for name, tensor in rows.items():
            if name.startswith(_OPTIMIZER):
                parameter, _, key = name.removeprefix(_OPTIMIZER).rpartition('.')
                states.setdefault(numbers[parameter], {})[key] = tensor
        optimizer = {name: value for name, value in optimizer.items() if name != 'rows'} | {'state': states}
    return state | own, training and training | of_training, optimizer


def numbered(optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> dict[int, str]:
    """Return the names of parameters by their number in the state of the optimiser."""
    name_of = {id(parameter): name for name, parameter in parameters}
    listed = [parameter for group in optimizer.param_groups for parameter in group['params']]
    return {number: name_of[id(parameter)] for number, parameter in enumerate(listed) if id(parameter) in name_of}


def _others(state: Tensors) -> Tensors:
    return {name: tensor for name, tensor in state.items() if not name.startswith(PREFIX)}
