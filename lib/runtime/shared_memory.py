"""Memory shared between processes: mapped files, NumPy arrays in them that are pickled by reference, and tensors."""

import errno
import math
import mmap
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from lib.errors import UserError, shown
from lib.runtime.read_file import available_memory, open_descriptor

if TYPE_CHECKING:
    import torch

_MIN_BYTES = 1 << 20  # smaller arrays are copied: a mapping costs more
_SHM_FOLDER = '/dev/shm'  # shared memory of Linux
_RESERVED_BYTES = 1 << 28  # at once: a signal makes the system begin such a step again
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def reserve(descriptor: int, num_bytes: int) -> None:
    """Extend an open file to `num_bytes` and allocate its blocks, before it is mapped for writing.

    Without the blocks, writing to the mapping of a file on a full disk, or in full shared memory, ends the process
    by a bus error. File systems that copy on write (ZFS, Btrfs) promise no blocks for later writes.

    Raises:
        OSError: ENOSPC, EDQUOT or EFBIG.
    """
    size = os.fstat(descriptor).st_size
    try:
        if not hasattr(os, 'posix_fallocate'):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        for start in range(0, num_bytes, _RESERVED_BYTES):
            os.posix_fallocate(descriptor, start, min(_RESERVED_BYTES, num_bytes - start))
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        _append_zeros(descriptor, size, num_bytes)


def _append_zeros(descriptor: int, size: int, num_bytes: int) -> None:
    os.lseek(descriptor, size, os.SEEK_SET)
    zeros = memoryview(bytes(1 << 20))
    while size < num_bytes:
        size += os.write(descriptor, zeros[: num_bytes - size])


class SharedFile:
    """A read-only, memory-mapped file, whose pages are shared by all processes.

    Pickled for a new process, it is a file descriptor, so the process reads the same content even if the file has been
    replaced or removed. On Windows and in other pickles, it is its path, or its content if it has no path.
    """

    def __init__(self, descriptor: int, path: str = '') -> None:
        """Take over an open `descriptor`. Raises: ValueError when the file is empty."""
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self.path = path
        self.memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)

    @classmethod
    def open(cls, path: str | os.PathLike) -> 'SharedFile':
        """Map the regular file at `path`. Raises: OSError; ValueError when it is empty."""
        return cls(open_descriptor(path)[0], os.path.abspath(path))

    @classmethod
    def holding(cls, content: Any) -> 'SharedFile':
        """Return an anonymous file with a copy of `content`, a buffer. Raises: OSError if memory or disk are full."""
        descriptor = _anonymous_file()
        try:
            remaining = memoryview(content).cast('B')
            while remaining:
                remaining = remaining[os.write(descriptor, remaining) :]
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
    """A read-only array in a SharedFile. Slices and results of operations are plain arrays."""

    _location: tuple | None = None

    @classmethod
    def at(cls, file: SharedFile, dtype: str, length: int, offset: int) -> 'SharedArray':
        """Return `length` values of `dtype` from byte `offset` of the file on. Raises: ValueError past its end."""
        array = np.frombuffer(file.memory, dtype, length, offset).view(cls)
        array._location = (file, dtype, length, offset)
        return array

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        if self._location is None:
            return np.asarray(self).__reduce_ex__(protocol)
        return SharedArray.at, self._location

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key]

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        plain = np.asarray(array)
        return plain[()] if return_scalar else plain


def to_shared_memory(array: np.ndarray) -> np.ndarray:
    """Return a copy of the 1-D `array` in shared memory; `array` itself if it is small or memory is full."""
    if isinstance(array, SharedArray) or array.nbytes < _MIN_BYTES or os.name != 'posix':
        return array
    try:
        return SharedArray.at(SharedFile.holding(np.ascontiguousarray(array)), array.dtype.str, len(array), 0)
    except OSError:
        return array


def _anonymous_file() -> int:
    """Return a descriptor of a new file without name, in memory if possible; it is freed with its last descriptor."""
    if hasattr(os, 'memfd_create'):
        with suppress(OSError):  # refused by old kernels and strict sandboxes: then a file on disk
            # /dev/shm has only 64 MB in many containers; memfd is only limited by the memory.
            return os.memfd_create('shared')
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _inherited(descriptor: Any, path: str) -> SharedFile:
    return SharedFile(descriptor.detach(), path)


def _reopened(path: str, identity: tuple[int, int, int]) -> SharedFile:
    file = SharedFile.open(path)
    if file._identity() != identity:
        raise UserError(f'{path} was replaced while it was in use; run the command again')
    return file


def shared_empty(*shape: int) -> 'torch.Tensor':
    """Return a uint8 tensor in shared memory, all of which is allocated; it is sent to other processes by reference.

    Raises:
        SharedMemoryFull: too little is free.
    """
    import torch  # here only: processes that decode images import this module, and need no torch

    num_bytes = max(1, math.prod(shape))
    try:
        storage = torch.UntypedStorage._new_shared(num_bytes)  # as in torch's default_collate
        if os.name == 'posix' and torch.multiprocessing.get_sharing_strategy() == 'file_descriptor':
            reserve(storage._get_shared_fd(), num_bytes)
    except (OSError, RuntimeError) as error:
        reason = shown(error)
        raise SharedMemoryFull(f'{num_bytes / 1e9:.2f} GB of shared memory cannot be allocated: {reason}') from None
    return torch.empty(0, dtype=torch.uint8).set_(storage)[: math.prod(shape)].view(shape)


class SharedMemoryFull(Exception):
    """Too little shared memory is free; the message states how much is needed and how much is free."""


def free_shared_bytes() -> int | None:
    """Return the free shared memory in bytes, or None if unknown (all systems but Linux)."""
    if not os.path.isdir(_SHM_FOLDER):
        return None
    free, available = shutil.disk_usage(_SHM_FOLDER).free, available_memory()
    return free if available is None else min(free, available)
