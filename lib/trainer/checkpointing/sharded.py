"""Files of a classifier whose rows are sharded over ranks: each rank writes its rows, any number of ranks reads them.

The folder has the layout of sharded safetensors: files of tensors, and an index that maps each tensor to its file.
Since the rows of one tensor are distributed, an entry names its rows too: `classifier.weight[0:25015]`. No pickles.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lib.errors import UserError, shown
from lib.runtime.files import replace_atomically, write_json
from lib.runtime.json_file import read_json
from lib.runtime.read_file import check_regular

CLASSIFIER_PREFIX = 'classifier.'
_TRAINING, _OPTIMIZER = 'training.', 'optimizer.'
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ClassifierShard:
    """The classifier rows of one rank.

    Attributes:
        rows: (len(classes), ...) tensors: `classifier.weight`, `training.classifier.weight` (with an EMA),
            `optimizer.classifier.weight.momentum_buffer`, ...
        classes: classes of the rows.
        num_classes: of the whole classifier.
        rank, count: number of this shard, and number of shards.
    """

    rows: Tensors
    classes: range
    num_classes: int
    rank: int
    count: int


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


INDEX = 'classifier.safetensors.index.json'
_ENTRY = re.compile(r'(?P<name>.+)\[(?P<start>[0-9]{1,10}):(?P<stop>[0-9]{1,10})\]')
_SHARD = re.compile(r'[\w-]+\.safetensors')
_CHUNK_NUMBERS = 1 << 22
# Time for the slowest rank to write its shard; once the run ends by an error, that rank may have ended as well.
_TIMEOUT_SECONDS, _ENDING_TIMEOUT_SECONDS = 600, 10


def shard_file_name(rank: int, count: int) -> str:
    """Return the file name of one shard of `count`."""
    return f'classifier-{rank + 1:05d}-of-{count:05d}.safetensors'


def write_shard_and_index(folder: Path, shard: ClassifierShard, ending: Callable[[], bool] = lambda: False) -> None:
    """Write the rows of a rank; the main rank waits for the other shards and writes the index.

    Args:
        ending: polled while waiting; once it returns True, the other ranks have a few seconds left.

    Raises:
        OSError: for example no space left.
        UserError: a shard is missing.
    """
    write_shard(folder, shard.rows, shard.classes, rank=shard.rank, count=shard.count)
    if shard.rank == 0:
        write_index(folder, shard.num_classes, shard.count, ending)


def write_shard(folder: Path, rows: dict[str, torch.Tensor], classes: range, *, rank: int, count: int) -> None:
    """Write the rows of one rank, atomically.

    Args:
        rows: by name, each (len(classes), ...).
        classes: classes of these rows.

    Raises:
        OSError: for example no space left.
    """
    entries = {f'{name}[{classes.start}:{classes.stop}]': tensor.contiguous() for name, tensor in rows.items()}
    with replace_atomically(folder / shard_file_name(rank, count)) as temporary:
        try:
            save_file(entries, temporary, metadata={'format': 'pt'})
        except SafetensorError as error:
            # safetensors reports a full disk in its message only.
            raise OSError(28 if 'No space' in str(error) else 5, str(error), str(temporary)) from None


def write_index(folder: Path, num_classes: int, count: int, ending: Callable[[], bool] = lambda: False) -> None:
    """Write the index once the shards of all ranks exist; the wait polls the files and uses no collective.

    Args:
        ending: as in write_shard_and_index.

    Raises:
        UserError: a shard is missing.
    """
    shards = [folder / shard_file_name(rank, count) for rank in range(count)]
    end, shortened = time.monotonic() + _TIMEOUT_SECONDS, False
    while missing := [shard for shard in shards if not shard.exists()]:
        if time.monotonic() > end:
            raise UserError(
                f'{missing[0]} was not written by its rank, so there is no checkpoint of this step; if that rank gives '
                'no reason, LOG_ROOT is not a folder that all ranks share'
            )
        if not shortened and ending():
            end, shortened = time.monotonic() + _ENDING_TIMEOUT_SECONDS, True
        time.sleep(0.05)
    weight_map: dict[str, str] = {}
    total = 0
    for shard in shards:
        with safe_open(shard, 'pt') as file:
            weight_map |= dict.fromkeys(sorted(file.keys()), shard.name)
        total += shard.stat().st_size
    metadata = {'total_size': total, 'num_classes': num_classes}
    write_json(folder / INDEX, {'metadata': metadata, 'weight_map': weight_map})


def num_classes_of(folder: Path) -> int:
    """Return the number of classes of a sharded classifier. Raises: UserError."""
    return _read_index(folder).metadata.num_classes


def read_rows(folder: Path, classes: range | None = None) -> dict[str, torch.Tensor]:
    """Return the rows of `classes` (None: all) of every tensor, from however many files.

    Raises:
        UserError: the index, a file or rows are missing or damaged.
    """
    index = _read_index(folder)
    classes = range(index.metadata.num_classes) if classes is None else classes
    joined: dict[str, torch.Tensor] = {}
    for file, entries in _by_file(index.weight_map).items():
        try:
            check_regular(folder / file)
            with safe_open(folder / file, 'pt') as opened:
                for entry in entries:
                    name, stored = _parse_entry(entry)
                    selected = range(max(stored.start, classes.start), min(stored.stop, classes.stop))
                    values = opened.get_slice(entry)
                    if values.get_shape()[:1] != [len(stored)]:
                        raise ValueError(f'{entry} has another number of rows')
                    for first, rows in _chunks(values, selected, stored.start):
                        if name not in joined:
                            joined[name] = rows.new_empty(len(classes), *rows.shape[1:])
                        joined[name][first - classes.start :][: len(rows)] = rows
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:  # RuntimeError: rows of other shapes
            raise UserError(f'{folder / file}: cannot be read as a shard of a classifier ({shown(error)})') from None
    if len(classes) and not joined:
        raise UserError(f'{folder}: does not hold all rows of classes {classes.start} to {classes.stop - 1}')
    return joined


def _chunks(entry: Any, selected: range, start: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first class, rows) of the selected rows, a few megabytes at a time; the entry begins at class `start`."""
    step = max(1, _CHUNK_NUMBERS // max(1, math.prod(entry.get_shape()[1:])))
    for first in range(selected.start, selected.stop, step):
        yield first, entry[first - start : min(first + step, selected.stop) - start]


class _Metadata(msgspec.Struct):
    num_classes: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]


class _Index(msgspec.Struct):
    metadata: _Metadata
    weight_map: dict[str, str]


def _read_index(folder: Path) -> _Index:
    """Return the index, whose entries name each row of each tensor once. Raises: UserError."""
    path = folder / INDEX
    try:
        index = read_json(path, _Index)
        outside = [file for file in index.weight_map.values() if not _SHARD.fullmatch(file)]
        rows: dict[str, list[range]] = {}
        for entry in index.weight_map:
            name, stored = _parse_entry(entry)
            rows.setdefault(name, []).append(stored)
    except (UserError, ValueError) as error:
        raise UserError(f'{path}: cannot be read as the index of a classifier ({shown(error)})') from None
    if outside:
        raise UserError(f'{path}: is not the index of a sharded classifier')
    for name, ranges in rows.items():
        ranges.sort(key=lambda one: (one.start, one.stop))
        ends = [0, *(one.stop for one in ranges)]
        if [one.start for one in ranges] != ends[:-1] or ends[-1] != index.metadata.num_classes:
            raise UserError(f'{path}: does not name each row of {shown(name)} once')
    return index


def _parse_entry(entry: str) -> tuple[str, range]:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError(f'{shown(entry)} names no rows')
    return match['name'], range(int(match['start']), int(match['stop']))


def _by_file(weight_map: dict[str, str]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for entry, file in weight_map.items():
        files.setdefault(file, []).append(entry)
    return files
