"""CRC-32 checksums of what a command reads again: arrays in a file, JSON objects, and the records of a zip archive.

They find damage (a flipped bit, a zeroed page, other content), not forgery. zlib computes 1 to 3 GB/s per thread, and
several threads compute at the same time.
"""

import json
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lib.runtime.read_file import open_regular
from lib.runtime.workers import num_cores

if TYPE_CHECKING:
    import torch

Item = TypeVar('Item')
Result = TypeVar('Result')
_KEY = 'crc32'
_CHUNK_BYTES = 1 << 22
_MAX_THREADS = 8  # more are limited by the memory
_LOCAL_HEADER_BYTES = 30  # of a zip archive, before name and extra field


def checksum(*parts: bytes | memoryview | np.ndarray) -> int:
    """Return the CRC-32 of the parts, one after another; arrays count with their values in row order."""
    value = 0
    for part in parts:
        data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data if isinstance(part, np.ndarray) else part
        value = zlib.crc32(data, value)
    return value


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], count: int) -> Iterable[Result]:
    """Yield the result of each of `count` items, in order; large ones are computed in threads."""
    num_threads = min(_MAX_THREADS, num_cores(), count)
    if num_threads < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        yield from pool.map(work, items)


def checksum_of_columns(columns: Mapping[str, Any], *parts: bytes) -> int:
    """Return the CRC-32 of Arrow columns without missing values (names, types, counts, values) and of further bytes.

    A column counts with its values only, not with its place in a file or a larger array. Threads share the work.
    """
    pieces: list[Any] = list(parts)
    for name, column in columns.items():
        pieces += [f'{name} {column.type} {len(column)} {column.null_count}'.encode(), *_values_of(column)]
    views = [memoryview(piece).cast('B') for piece in pieces]
    chunks = [view[start : start + _CHUNK_BYTES] for view in views for start in range(0, len(view), _CHUNK_BYTES)]
    return checksum(np.fromiter(in_threads(zlib.crc32, chunks, len(chunks)), np.uint32, len(chunks)))


def _values_of(column: Any) -> Iterable[np.ndarray]:
    first, last = column.offset, column.offset + len(column)
    buffers = column.buffers()
    if len(buffers) == 2:
        width = column.type.bit_width // 8
        yield np.frombuffer(buffers[1] or b'', np.uint8)[first * width : last * width]
        return
    offsets = np.frombuffer(buffers[1] or b'', np.int64 if 'large' in str(column.type) else np.int32)[first : last + 1]
    if len(offsets):
        yield np.frombuffer(buffers[2] or b'', np.uint8)[offsets[0] : offsets[-1]]
        yield (offsets if not offsets[0] else offsets - offsets[0]).view(np.uint8)


def checksum_of_tensor(tensor: 'torch.Tensor') -> int:
    """Return the CRC-32 of a tensor: its dtype, its shape and its values."""
    import torch  # here only: processes that decode images import this module, and need no torch

    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return checksum(f'{tensor.dtype} {tuple(tensor.shape)}'.encode(), values)


def with_checksums(metadata: Mapping[str, str], state: Mapping[str, 'torch.Tensor']) -> dict[str, str]:
    """Return the header of a safetensors file, with the checksums of its texts and of its tensors as another entry."""
    tensors = {name: checksum_of_tensor(tensor) for name, tensor in state.items()}
    texts = {name: checksum(text.encode()) for name, text in metadata.items()}
    return {**metadata, _KEY: json.dumps({'tensors': tensors, 'texts': texts})}


def write_tensors(path: Path, tensors: Mapping[str, 'torch.Tensor'], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; equal content gives equal bytes.

    The library writes the metadata in a random order, which is sorted afterwards, within the same bytes.

    Raises:
        SafetensorError: for example no space left; the reason is in its text only.
    """
    from safetensors.torch import save_file

    save_file(dict(tensors), path, metadata=dict(metadata))
    with open(path, 'r+b') as file:
        (length,) = struct.unpack('<Q', file.read(8))
        header = json.loads(file.read(length))
        header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
        file.seek(8)
        file.write(text.ljust(length))


def check_safetensors(file: Any) -> None:
    """Compare an open safetensors file with the checksums in its header; files of other programs have none.

    Raises:
        ValueError: one does not match.
    """
    metadata = dict(file.metadata() or {})
    if _KEY not in metadata:
        return
    expected, names = metadata.pop(_KEY), list(file.keys())
    tensors = {name: checksum_of_tensor(file.get_tensor(name)) for name in names}
    texts = {name: checksum(text.encode()) for name, text in metadata.items()}
    if json.loads(expected) != {'tensors': tensors, 'texts': texts}:
        raise ValueError('damaged: a checksum does not match')


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its checksum as an additional entry."""
    return {**content, _KEY: zlib.crc32(_canonical(content))}


def unsealed(value: object) -> dict[str, Any] | None:
    """Return a JSON object without its checksum; None if it has another one, or another form."""
    if not isinstance(value, dict):
        return None
    content = {name: entry for name, entry in value.items() if name != _KEY}
    try:
        is_same = value.get(_KEY) == zlib.crc32(_canonical(content))
    except (ValueError, TypeError, RecursionError):
        return None
    return content if is_same else None


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(',', ':')).encode()


def damaged_record(path: Path, is_read: Callable[[str], bool] = lambda name: True) -> str:
    """Return the name of a record of a zip archive whose checksum does not match; '' if all do.

    Only records without compression are checked, as torch.save writes them. An archive without checksums (all zero, as
    torch.serialization.set_crc32_options(False) writes them) cannot be checked.

    Args:
        is_read: whether the record of this name is to be checked.

    Raises:
        zipfile.BadZipFile: not a zip archive, or a truncated one.
        OSError: it cannot be read.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        records = [record for record in archive.infolist() if not record.compress_type]
        if not any(record.CRC for record in records):
            return ''
        # The largest first: they take the longest, so that they limit the time of all threads together.
        checked = sorted((record for record in records if is_read(record.filename)), key=lambda one: -one.file_size)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            found = in_threads(lambda record: _checksum_of_record(memory, record), checked, len(checked))
            return next((one.filename for one, value in zip(checked, found, strict=True) if value != one.CRC), '')


def _checksum_of_record(memory: mmap.mmap, record: zipfile.ZipInfo) -> int:
    header = memory[record.header_offset : record.header_offset + _LOCAL_HEADER_BYTES]
    start = record.header_offset + _LOCAL_HEADER_BYTES + sum(struct.unpack('<HH', header[26:]))
    with memoryview(memory) as whole, whole[start : start + record.file_size] as data:
        return zlib.crc32(data) if len(data) == record.file_size else -1
