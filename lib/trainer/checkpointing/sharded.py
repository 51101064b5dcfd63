"""A classifier over many ranks as files: each rank writes its rows, and any number of ranks reads them.

The folder is laid out as sharded safetensors are: files of tensors, and an index of which file holds what. Since it is
the rows of one tensor that are spread, an entry names them too: `classifier.weight[0:25015]`. Nothing is pickled.

Which tensors of a checkpoint have a row a class: they are what ranks that share a classifier save apart.
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lib.errors import UserError
from lib.runtime.files import replace_atomically, write_json

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


INDEX = 'classifier.safetensors.index.json'
_ENTRY = re.compile(r'(?P<name>.+)\[(?P<start>\d+):(?P<stop>\d+)\]')
_PIECE_NUMBERS = 1 << 22
# For the slowest rank to write its part; once the run ends by an error, which may have ended that rank as well.
_PATIENCE_SECONDS, _LITTLE_PATIENCE_SECONDS = 600, 10


def part_name(rank: int, count: int) -> str:
    """Return the file of one rank of `count`."""
    return f'classifier-{rank + 1:05d}-of-{count:05d}.safetensors'


def write_head(folder: Path, head: HeadRows, ending: Callable[[], bool] = lambda: False) -> None:
    """Write a rank's rows; the main rank waits for the others' and writes the index.

    `ending`: asked while waiting; once it says yes, the others have a few seconds left.

    Raises:
        OSError: for example no space left.
        UserError: a part did not come.
    """
    write_part(folder, head.rows, head.classes, rank=head.rank, count=head.count)
    if head.rank == 0:
        write_index(folder, head.num_classes, head.count, ending)


def write_part(folder: Path, rows: dict[str, torch.Tensor], classes: range, *, rank: int, count: int) -> None:
    """Write one rank's rows, atomically.

    Args:
        rows: by name, each (len(classes), ...).
        classes: which of all.

    Raises:
        OSError: for example no space left.
    """
    entries = {f'{name}[{classes.start}:{classes.stop}]': tensor.contiguous() for name, tensor in rows.items()}
    with replace_atomically(folder / part_name(rank, count)) as temporary:
        try:
            save_file(entries, temporary, metadata={'format': 'pt'})
        except SafetensorError as error:
            # It tells a full disk in its own words alone.
            raise OSError(28 if 'No space' in str(error) else 5, str(error), str(temporary)) from None


def write_index(folder: Path, num_classes: int, count: int, ending: Callable[[], bool] = lambda: False) -> None:
    """Write the index once the parts of all ranks are there; waiting for them takes no collective.

    `ending` as in write_head.

    Raises:
        UserError: a part did not come.
    """
    parts = [folder / part_name(rank, count) for rank in range(count)]
    end, hurried = time.monotonic() + _PATIENCE_SECONDS, False
    while missing := [part for part in parts if not part.exists()]:
        if time.monotonic() > end:
            raise UserError(
                f'{missing[0]} was not written by its rank, so there is no checkpoint of this step; if that rank gives '
                'no reason, LOG_ROOT is not a folder that all ranks share'
            )
        if not hurried and ending():
            end, hurried = time.monotonic() + _LITTLE_PATIENCE_SECONDS, True
        time.sleep(0.05)
    weight_map, total = {}, 0
    for part in parts:
        with safe_open(part, 'pt') as file:
            weight_map |= dict.fromkeys(sorted(file.keys()), part.name)
        total += part.stat().st_size
    metadata = {'total_size': total, 'num_classes': num_classes}
    write_json(folder / INDEX, {'metadata': metadata, 'weight_map': weight_map})


def num_classes_of(folder: Path) -> int:
    """Return how many classes a sharded classifier has. Raises: UserError."""
    return _read_index(folder)['metadata']['num_classes']


def read_rows(folder: Path, classes: range | None = None) -> dict[str, torch.Tensor]:
    """Return the rows of `classes` (None: all) of every tensor, whichever files they lie in.

    Raises:
        UserError: the index or a file is missing or damaged, or rows are.
    """
    index = _read_index(folder)
    classes = range(index['metadata']['num_classes']) if classes is None else classes
    joined: dict[str, torch.Tensor] = {}
    num_found: dict[str, int] = {}
    for file, entries in _by_file(index['weight_map']).items():
        try:
            with safe_open(folder / file, 'pt') as opened:
                for entry in entries:
                    found = _ENTRY.fullmatch(entry)
                    name, start, stop = found['name'], int(found['start']), int(found['stop'])
                    wanted = range(max(start, classes.start), min(stop, classes.stop))
                    num_found[name] = num_found.get(name, 0) + len(wanted)
                    for first, rows in _pieces(opened.get_slice(entry), wanted, start):
                        if name not in joined:
                            joined[name] = rows.new_empty(len(classes), *rows.shape[1:])
                        joined[name][first - classes.start :][: len(rows)] = rows
        except (OSError, SafetensorError) as error:
            raise UserError(f'{folder / file}: cannot be read as a part of a classifier ({error})') from None
    if any(number != len(classes) for number in num_found.values()) or (len(classes) and not joined):
        raise UserError(f'{folder}: does not hold all rows of classes {classes.start} to {classes.stop - 1}')
    return joined


def _pieces(entry: Any, wanted: range, start: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first class, rows), a few megabytes at a time: the wanted ones of an entry that begins at `start`."""
    step = max(1, _PIECE_NUMBERS // max(1, math.prod(entry.get_shape()[1:])))
    for first in range(wanted.start, wanted.stop, step):
        yield first, entry[first - start : min(first + step, wanted.stop) - start]


def _read_index(folder: Path) -> dict:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding='utf-8'))
        names = [*index['weight_map'], str(int(index['metadata']['num_classes']))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: cannot be read as the index of a classifier ({type(error).__name__})') from None
    outside = [file for file in index['weight_map'].values() if Path(str(file)).name != file]
    if outside or not all(_ENTRY.fullmatch(name) for name in names[:-1]):
        raise UserError(f'{path}: is not the index of a classifier in parts')
    return index


def _by_file(weight_map: dict[str, str]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for entry, file in weight_map.items():
        files.setdefault(file, []).append(entry)
    return files
