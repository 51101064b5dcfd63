"""Files of a classifier whose rows are sharded over ranks: each rank writes its rows, any number of ranks reads them.

The folder has the layout of sharded safetensors: files of tensors, and an index that maps each tensor to its file.
Since the rows of one tensor are distributed, an entry names its rows too: `classifier.weight[0:25015]`. No pickles.
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from lib.dataset.annotation_rows import MAX_CLASSES
from lib.errors import UserError, shown
from lib.runtime.checksums import checksum_of_tensor, sealed, unsealed, write_tensors
from lib.runtime.files import replace_atomically, write_json
from lib.runtime.json_file import Record, read_json
from lib.runtime.mirror import is_mirrored
from lib.runtime.read_file import check_regular
from lib.runtime.storage import materialize
from lib.runtime.uploads import is_published

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ClassifierShard:
    """The classifier rows of one rank.

    Attributes:
        rows: (len(classes), ...) tensors: `classifier.weight`, `training.classifier.weight` (with an EMA),
            `optimizer.classifier.weight.momentum_buffer`, ...
        classes: classes of the rows.
        num_classes: number of classes of the whole classifier.
        rank, count: number of this shard, and number of shards.
    """

    rows: Tensors
    classes: range
    num_classes: int
    rank: int
    count: int


INDEX = 'classifier.safetensors.index.json'
_ENTRY = re.compile(r'(?P<name>.+)\[(?P<start>[0-9]{1,10}):(?P<stop>[0-9]{1,10})\]')
_SHARD = re.compile(r'[\w-]+\.safetensors')
_CHUNK_NUMBERS = 1 << 22
_CHECKSUMS = 'crc32_of_blocks'  # entry in the header of a file
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
            write_tensors(temporary, entries, {'format': 'pt', _CHECKSUMS: _checksums_of(entries)})
        except SafetensorError as error:
            # safetensors reports a full disk in its message only.
            raise OSError(28 if 'No space' in str(error) else 5, str(error), str(temporary)) from None


def _checksums_of(entries: Tensors) -> str:
    """Return the checksums of each entry as JSON: rows per block, then the checksum of each block."""
    sums = {}
    for name, tensor in entries.items():
        step = _rows_at_once(tensor.shape)
        sums[name] = [
            step,
            *(checksum_of_tensor(tensor[first : first + step]) for first in range(0, len(tensor), step)),
        ]
    return json.dumps(sums)


def _rows_at_once(shape: Sequence[int]) -> int:
    return max(1, _CHUNK_NUMBERS // max(1, math.prod(shape[1:])))


def write_index(folder: Path, num_classes: int, count: int, ending: Callable[[], bool] = lambda: False) -> None:
    """Write the index once the shards of all ranks exist; the wait polls the files and uses no collective.

    Args:
        ending: as in write_shard_and_index.

    Raises:
        UserError: a shard is missing.
    """
    shards = [folder / shard_file_name(rank, count) for rank in range(count)]
    end, shortened = time.monotonic() + _TIMEOUT_SECONDS, False
    while missing := [shard for shard in shards if not is_published(shard)]:
        if time.monotonic() > end:
            raise UserError(
                f'{missing[0]} was not written by its rank, so there is no checkpoint of this step; if that rank gives '
                'no reason, LOG_ROOT is not a folder that all ranks share'
            )
        if not shortened and ending():
            end, shortened = time.monotonic() + _ENDING_TIMEOUT_SECONDS, True
        time.sleep(1 if is_mirrored(folder) else 0.05)
    weight_map: dict[str, str] = {}
    total = 0
    for shard in shards:
        materialize(shard)
        with safe_open(shard, 'pt') as file:
            weight_map |= dict.fromkeys(sorted(file.keys()), shard.name)
        total += shard.stat().st_size
    metadata = {'total_size': total, 'num_classes': num_classes}
    write_json(folder / INDEX, sealed({'metadata': metadata, 'weight_map': weight_map}))


def num_classes_of(folder: Path) -> int:
    """Return the number of classes of a sharded classifier. Raises: UserError."""
    return _read_index(folder).metadata.num_classes


def check_shards(folder: Path) -> None:
    """Compare all rows of all files with their checksums. Raises: UserError, as read_rows."""
    index = _read_index(folder)
    for file, entries in _by_file(index.weight_map).items():
        for _ in _read_file(folder / file, entries, range(index.metadata.num_classes)):
            pass


def read_rows(folder: Path, classes: range | None = None) -> dict[str, torch.Tensor]:
    """Return the rows of `classes` (None: all) of every tensor, from however many files.

    Raises:
        UserError: the index, a file or rows are missing or damaged.
    """
    index = _read_index(folder)
    classes = range(index.metadata.num_classes) if classes is None else classes
    joined: dict[str, torch.Tensor] = {}
    for file, entries in _by_file(index.weight_map).items():
        for name, first, rows in _read_file(folder / file, entries, classes):
            if name not in joined:
                joined[name] = rows.new_empty(len(classes), *rows.shape[1:])
            if joined[name].shape[1:] != rows.shape[1:]:
                raise UserError(f'{folder / file}: cannot be read as a shard of a classifier (rows of other shapes)')
            joined[name][first - classes.start :][: len(rows)] = rows
    if len(classes) and not joined:
        raise UserError(f'{folder}: does not hold all rows of classes {classes.start} to {classes.stop - 1}')
    return joined


def _read_file(path: Path, entries: list[str], classes: range) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Yield (name, first class, rows) of the given classes, a few megabytes at a time. Raises: UserError."""
    try:
        materialize(path)
        check_regular(path)
        with safe_open(path, 'pt') as opened:
            text = (opened.metadata() or {}).get(_CHECKSUMS)  # files of earlier versions have none
            sums = None if text is None else msgspec.json.decode(text, type=dict[str, list[int]])
            for entry in entries:
                name, stored = _parse_entry(entry)
                values = opened.get_slice(entry)
                if values.get_shape()[:1] != [len(stored)]:
                    raise ValueError(f'{entry} has another number of rows')
                selected = range(max(stored.start, classes.start), min(stored.stop, classes.stop))
                blocks = _blocks(values, None if sums is None else sums.get(entry, []), selected, stored)
                yield from ((name, first, rows) for first, rows in blocks)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f'{path}: cannot be read as a shard of a classifier ({shown(error)})') from None


def _blocks(values: Any, sums: list[int] | None, selected: range, stored: range) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first class, rows) of the selected rows: of each block with a checksum that holds some of them.

    Args:
        values: values of an entry, for the classes `stored`.
        sums: rows per block, then the checksum of each block; None: there are no checksums.
    """
    step, *expected = [_rows_at_once(values.get_shape())] if sums is None else sums
    if step < 1 or (sums is not None and len(expected) != -(-len(stored) // step)):
        raise ValueError('its checksums are damaged')
    first_block = (selected.start - stored.start) // step
    for number in range(first_block, -(-(selected.stop - stored.start) // step) if selected else first_block):
        first = stored.start + number * step
        block = values[number * step : min((number + 1) * step, len(stored))]
        if sums is not None and checksum_of_tensor(block) != expected[number]:
            raise ValueError(f'damaged: the checksum of rows {first} to {first + len(block) - 1} does not match')
        start = max(first, selected.start)
        yield start, block[start - first : selected.stop - first]


class _Metadata(msgspec.Struct):
    num_classes: Annotated[int, msgspec.Meta(ge=1, le=MAX_CLASSES)]


class _Index(msgspec.Struct):
    metadata: _Metadata
    weight_map: dict[str, str]


def _read_index(folder: Path) -> _Index:
    """Return the index, whose entries name each row of each tensor once. Raises: UserError."""
    path = folder / INDEX
    try:
        materialize(path)
        content = read_json(path, Record)
        if 'crc32' in content and unsealed(content) is None:  # files of earlier versions have no checksum
            raise ValueError('its checksum does not match')
        index = msgspec.convert(content, _Index)
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
