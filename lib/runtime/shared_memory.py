"""Memory that worker processes share: a mapped file, named or not, and arrays in it that pickle as their place.

Memory that other processes see without a copy.
"""

import math
import mmap
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch

from lib.errors import UserError

_SMALL = 1 << 20  # bytes; below it, a copy for every worker costs less than a mapping


class SharedFile:
    """A read-only file in memory; whoever opens it shares the pages.

    To a process that is being started it travels as a descriptor, so that process sees this very content even when
    the file was replaced or removed meanwhile. Elsewhere (Windows, plain pickling) it travels as its path, or as its
    bytes when it has none.
    """

    def __init__(self, descriptor: int, path: str = '') -> None:
        """Take over an open `descriptor`. Raises: ValueError when the file is empty."""
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self.path = path
        self.memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)

    @classmethod
    def open(cls, path: str | os.PathLike) -> 'SharedFile':
        """Map the file at `path`. Raises: OSError; ValueError when it is empty."""
        return cls(os.open(path, os.O_RDONLY | getattr(os, 'O_BINARY', 0)), os.path.abspath(path))

    @classmethod
    def holding(cls, content: Any) -> 'SharedFile':
        """Return a file without a name, with a copy of `content`, a buffer. Raises: OSError when there is no room."""
        descriptor = _nameless()
        try:
            left = memoryview(content).cast('B')
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def __reduce__(self) -> tuple:
        if get_spawning_popen() is not None and os.name == 'posix':
            return _inherited, (DupFd(self._descriptor), self.path)
        if self.path:
            return _reopened, (self.path, self._identity())
        return SharedFile.holding, (self.memory[:],)

    def _identity(self) -> tuple[int, int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns, status.st_ino


class SharedArray(np.ndarray):
    """A read-only array in a SharedFile. Parts of it and results are plain arrays."""

    _place: tuple | None = None

    @classmethod
    def at(cls, file: SharedFile, dtype: str, length: int, offset: int) -> 'SharedArray':
        """Return `length` values of `dtype` from byte `offset` of the file on. Raises: ValueError past its end."""
        array = np.frombuffer(file.memory, dtype, length, offset).view(cls)
        array._place = (file, dtype, length, offset)
        return array

    def __reduce_ex__(self, protocol: int) -> tuple:
        if self._place is None:
            return np.asarray(self).__reduce_ex__(protocol)
        return SharedArray.at, self._place

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key]

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain


def to_shared_memory(array: np.ndarray) -> np.ndarray:
    """Return the one-dimensional `array` in memory that workers share; itself where it is small or there is no room."""
    if isinstance(array, SharedArray) or array.nbytes < _SMALL or os.name != 'posix':
        return array
    try:
        return SharedArray.at(SharedFile.holding(np.ascontiguousarray(array)), array.dtype.str, len(array), 0)
    except OSError:
        return array


def _nameless() -> int:
    """Return a descriptor of a new file that vanishes with its last user: in memory where the system offers it."""
    if hasattr(os, 'memfd_create'):
        with suppress(OSError):  # an old kernel, a strict sandbox: then a file on disk
            # Unlike /dev/shm, which is 64 MB in many containers, it has no limit but the memory.
            return os.memfd_create('shared')
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _inherited(descriptor: Any, path: str) -> SharedFile:
    return SharedFile(descriptor.detach(), path)


def _reopened(path: str, identity: tuple[int, int, int]) -> SharedFile:
    file = SharedFile.open(path)
    if file._identity() != identity:
        raise UserError(f'{path}: was replaced while it was in use; run again')
    return file


_FOLDER = '/dev/shm'  # where Linux keeps it


def shared_empty(*shape: int) -> torch.Tensor:
    """Return a uint8 tensor in shared memory; sent to another process, only its address travels.

    Too little of it shows as a bus error when it is written to: ask `free_shared_bytes` first.
    """
    storage = torch.UntypedStorage._new_shared(max(1, math.prod(shape)))  # as torch's own collate allocates batches
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)


class SharedMemoryFull(Exception):
    """Too little shared memory is free; the message states how much is needed and how much is free."""


def free_shared_bytes() -> int | None:
    """Return how much shared memory can be had; None where the system does not tell."""
    if not os.path.isdir(_FOLDER):
        return None
    free = shutil.disk_usage(_FOLDER).free
    try:
        with open('/proc/meminfo', encoding='ascii') as file:
            available = [int(line.split()[1]) * 1024 for line in file if line.startswith('MemAvailable')]
    except OSError:
        available = []
    return min([free, *available])
