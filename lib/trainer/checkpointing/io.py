"""Read and write checkpoint files: torch.save with `weights_only` loading, and safetensors for exported weights.

Reading a checkpoint never runs code; writing one is atomic and can be canceled.
"""

import errno
import importlib
import json
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch
from safetensors import safe_open

from lib.backbone.pretrained import fault_of
from lib.backbone.weights_file import WeightsFileError, read_weights_file
from lib.errors import UserError, is_unicode, shown
from lib.runtime.checksums import check_safetensors, damaged_record
from lib.runtime.files import replace_atomically
from lib.runtime.folders import check_checkpoint_exists
from lib.runtime.read_file import RefusedFileError, check_regular, open_regular, reason_of
from lib.trainer.checkpointing.content import WEIGHTS_HINT, InvalidContent, from_content, to_content
from lib.trainer.checkpointing.state import Checkpoint

# Checkpoints of the original entry may hold the accuracy as a NumPy scalar. These names only build a number.
_scalar = importlib.import_module('numpy._core.multiarray').scalar
_NUMPY_SCALARS: list[Any] = [
    (_scalar, 'numpy.core.multiarray.scalar'),
    (_scalar, 'numpy._core.multiarray.scalar'),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]
_CHUNK_BYTES = 1 << 24
_MAX_DEPTH = 8  # of dictionaries and lists in each other


def write_checkpoint(path: Path, checkpoint: Checkpoint, canceled: Callable[[], bool] = lambda: False) -> None:
    """Write a checkpoint atomically; the file has the keys of the original entry's files and more.

    Args:
        canceled: polled every few megabytes; once it returns True, writing stops.

    Raises:
        OSError: for example no space left, or canceled; an earlier file at `path` is unchanged.
    """
    write_torch(path, to_content(checkpoint), canceled)


def read_checkpoint(path: str | Path, *, with_rows: bool = True, mmap: bool = False, option: str = '') -> Checkpoint:
    """Read a checkpoint of this project or of the original entry (`module.` prefix, no config).

    Args:
        with_rows: False: leave the rows of a sharded classifier on the disk for now.
        mmap: map the file, so that only the tensors used are read, without their checksums; a reader of progress or
            config needs none.
        option: the option that names the file, for error messages.

    Raises:
        UserError: no such file, truncated, not a checkpoint, or a file that would have to run code to be read.
    """
    path = Path(path)
    name = f'{option} {path}'.lstrip()
    check_checkpoint_exists(path, name)
    try:
        content = read_exported(path) if path.suffix == '.safetensors' else load_content(path, mmap=mmap)
    except pickle.UnpicklingError:
        raise UserError(f'{name}: {_foreign(path)}') from None
    except (RefusedFileError, IsADirectoryError, PermissionError) as error:
        raise UserError(f'{name}: {reason_of(error)}') from None
    except InvalidContent as error:
        raise _damaged(name, error) from None
    except Exception as error:  # damaged bytes make the unpickler raise errors of any type
        raise _unreadable(name, error) from None
    try:
        checkpoint = from_content(content, path, name)
    except InvalidContent as error:
        raise _damaged(name, error) from None
    except KeyError as error:
        raise _damaged(name, InvalidContent(f'{shown(error)} is missing')) from None
    return checkpoint.with_rows() if with_rows else checkpoint


def safetensors_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the header of a safetensors file of the checkpoint's state_dict, as read_checkpoint expects it."""
    content = to_content(checkpoint)
    keys = ('place', 'config', 'recipe', 'train_digest', 'class_names', 'class_parents', 'corrections')
    header = {key: content[key] for key in keys if key in content}
    if 'class_counts' in content:
        header['class_counts'] = content['class_counts'].tolist()
    return {'checkpoint': json.dumps(header, ensure_ascii=False)}


def read_exported(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint that was exported as safetensors; it cannot be resumed.

    Raises:
        SafetensorError, ValueError, InvalidContent: not a safetensors file, not one of this project, or damaged.
    """
    check_regular(path)
    with safe_open(path, 'pt') as file:
        check_safetensors(file)
        header = (file.metadata() or {}).get('checkpoint')
        if header is None:
            raise InvalidContent(f'it holds weights alone; {WEIGHTS_HINT}')
        content = json.loads(header)
        content['state_dict'] = {name: file.get_tensor(name) for name in list(file.keys())}
    _check_plain(content)
    if 'class_counts' in content:
        content['class_counts'] = torch.tensor(content['class_counts'], dtype=torch.int64)
    return {'optimizer': None, **content}


def _check_plain(value: Any, name: str = 'the file', depth: int = 0) -> None:
    """Check that a tree has dense tensors, numbers of 64 bits, and texts that are Unicode, and is not deep.

    Raises:
        InvalidContent: it does not.
    """
    if isinstance(value, torch.Tensor):
        _check_dense(value, name)
    elif isinstance(value, dict | list | tuple):
        if depth == _MAX_DEPTH:
            raise InvalidContent(f'{shown(name)}: more than {_MAX_DEPTH} levels are nested')
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            if not isinstance(key, str | int) or (isinstance(key, str) and not is_unicode(key)):
                raise InvalidContent(f'{name}: the name {shown(key)} of an entry is no text')
            _check_plain(entry, key if isinstance(key, str) and depth < 2 else name, depth + 1)
    elif isinstance(value, str):
        if not is_unicode(value):
            raise InvalidContent(f'{shown(name)}: {shown(value)} is not Unicode')
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InvalidContent(f'{shown(name)}: a number of more than 64 bits')
    elif not isinstance(value, int | float | np.generic | None):
        raise InvalidContent(f'{shown(name)}: {shown(value)} is no tensor, number or text')


def _check_dense(tensor: torch.Tensor, name: str) -> None:
    """Check that a tensor has values in memory, no number of them twice: a view may claim a terabyte."""
    is_dense = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    if not is_dense or tensor.is_quantized or tensor.device.type != 'cpu':
        kind = 'quantized' if is_dense and tensor.is_quantized else f'{tensor.layout} on {tensor.device}'
        raise InvalidContent(f'{shown(name)}: a tensor is {kind}, not dense on the CPU')
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InvalidContent(f'{shown(name)}: a tensor of {tensor.numel():,} numbers, of which the file has fewer')


def write_torch(path: Path, content: Mapping[str, Any], canceled: Callable[[], bool] = lambda: False) -> None:
    """Replace the file at `path` by `content` in torch.save's format, atomically.

    Args:
        canceled: polled every few megabytes; once it returns True, writing stops.

    Raises:
        OSError: for example no space left, or canceled; an earlier file at `path` is unchanged.
    """
    with replace_atomically(path) as temporary:
        _check_space(path, content)
        # A file object of Python: with a file that torch opens itself, a full disk is an error without errno.
        try:
            with open(temporary, 'wb') as file:
                torch.save(content, cast(IO[bytes], _CancelableWriter(file, canceled)))
        except RuntimeError as error:
            # torch's writer raises its own error after the system's, which is more precise.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class _CancelableWriter:
    """The methods of a file that torch.save calls, writing in chunks until it is complete or canceled."""

    def __init__(self, file: BinaryIO, canceled: Callable[[], bool]) -> None:
        self._file, self._canceled = file, canceled

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK_BYTES):
            if self._canceled():
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self._file.write(view[start : start + _CHUNK_BYTES])
        return len(view)

    def flush(self) -> None:
        self._file.flush()


def _check_space(path: Path, content: Mapping[str, Any]) -> None:
    """Raise before the disk is full: log.txt and other runs keep writing to it."""
    disk = shutil.disk_usage(path.parent)
    if disk.total and disk.free < _num_bytes(content):  # some network disks report no space at all
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _num_bytes(tree: Any) -> int:
    if isinstance(tree, torch.Tensor):
        return tree.nbytes
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return sum(_num_bytes(value) for value in values)


def load_content(path: Path, *, mmap: bool) -> Any:
    """Return the objects of a file of torch.save: dense tensors, numbers and text, in dictionaries and lists.

    The records of the file are compared with their checksums, which torch writes, but does not read.

    Args:
        mmap: map the tensors, whose checksums are not compared.

    Raises:
        Exception: of any type for damaged bytes; pickle.UnpicklingError for other objects; InvalidContent.
    """
    with open_regular(path) as file:
        is_archive = file.read(2) == b'PK'
        if is_archive:
            _check_archive(file)
            # Those who map a file need no tensor, or few.
            record = damaged_record(path, lambda name: not (mmap and '/data/' in name))
            if record:
                raise InvalidContent(f'damaged: the checksum of its record {shown(record)} does not match')
    with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch warns about unusual pickles; read_checkpoint raises an error
        # Mapped, since torch reads values without comparing their number with the bytes that the file has for them.
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=is_archive)
    _check_plain(content)
    return content if mmap or not is_archive else _in_memory(content, {})


def _check_archive(file: BinaryIO) -> None:
    with zipfile.ZipFile(file) as archive:
        if sum(record.file_size for record in archive.infolist()) > file.seek(0, os.SEEK_END):
            raise InvalidContent('an archive that unpacks to more than its size')


def _in_memory(tree: Any, copies: dict[tuple, torch.Tensor]) -> Any:
    """Return a tree with copies of its mapped tensors; equal views of the same values share their copy."""
    if isinstance(tree, torch.Tensor):
        key = (tree.data_ptr(), tree.dtype, tree.shape, tree.stride())
        if key not in copies:
            copies[key] = tree.detach().clone()
        return copies[key]
    if isinstance(tree, dict):
        return {name: _in_memory(value, copies) for name, value in tree.items()}
    return type(tree)(_in_memory(value, copies) for value in tree) if isinstance(tree, list | tuple) else tree


def _foreign(path: Path) -> str:
    try:
        skipped = read_weights_file(path).skipped
    except WeightsFileError as error:
        return f'is no checkpoint, or it is damaged: it {fault_of(path, error)}'
    classes = f' such as {shown(skipped[0])}' if skipped else ''
    return (
        f'holds more than tensors, numbers and text{classes}, which could run code, so it is no checkpoint of this '
        f'project; {WEIGHTS_HINT}'
    )


def _damaged(name: str, error: InvalidContent) -> UserError:
    return UserError(f'{name}: cannot be read as a checkpoint ({error})')


def _unreadable(name: str, error: Exception) -> UserError:
    reason = f'{type(error).__name__}: {shown(error).split(". ")[0]}'
    return UserError(f'{name}: cannot be read as a checkpoint: damaged, cut short or of another format ({reason})')
