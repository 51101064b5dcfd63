"""Packed images of a bucket: their ranges are fetched ahead, verified, and written into sparse files on the disk.

No list of what was fetched is stored: the index has the checksum of each image, and a hole in a sparse file, or bytes
that a killed process wrote in part, do not match it. So processes can share the files, and lose blocks of them.
"""

import os
import random
import time
import zlib
from collections import defaultdict
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache, partial

import numpy as np

from lib.errors import UserError
from lib.runtime.bucket import joined_ranges
from lib.runtime.mirror import count, has_hole, is_here, open_sparse
from lib.runtime.read_file import open_descriptor
from lib.runtime.storage import read_ranges, request_pool
from lib.shards.index import PackedIndex

_ATTEMPTS, _FIRST_PAUSE_SECONDS = 3, 0.1
_MAX_PENDING = 20_000  # rows that were fetched ahead, but not read: of epochs that ended early


class _Shard:
    """A sparse file, or the shard itself where this machine has written it; closed with its last reference."""

    def __init__(self, path: str, size: int) -> None:
        self.is_whole = is_here(path)
        self.descriptor = open_descriptor(path)[0] if self.is_whole else open_sparse(path, size)

    def __del__(self) -> None:
        if hasattr(self, 'descriptor'):
            os.close(self.descriptor)


class RemoteShards:
    """The images of an index by row, for all threads of a process."""

    def __init__(self, index: PackedIndex, paths: list[str], max_open: int) -> None:
        """Set the index and the paths of its shards in the mirror; at most `max_open` of them stay open."""
        self._index, self._paths = index, paths
        self._opened = lru_cache(max_open)(self._open)
        self._pending: dict[int, Future] = {}
        self._is_verified = np.zeros(len(index), bool)  # on the disk, by this process

    def _open(self, shard: int) -> _Shard:
        return _Shard(self._paths[shard], self._index.contents.shards[shard].size)

    def read(self, row: int) -> tuple[bytes, bool]:
        """Return the bytes of an image, and whether they are those that were packed.

        Raises:
            FileNotFoundError: there is no such shard.
            UserError: the requests are refused or fail.
        """
        pending = self._pending.pop(row, None)
        if pending is not None:
            with suppress(OSError, UserError):  # of an attempt ahead of time; if it persists, it is raised below
                pending.result()
        data = self._local(row)
        for attempt in range(_ATTEMPTS):
            if self._is_packed(row, data):
                self._is_verified[row] = True
                return data, True
            if attempt:
                time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.5))
            shard = self._index.shards.item(row)
            (data,) = read_ranges(self._paths[shard], [(self._index.offsets.item(row), self._index.lengths.item(row))])
            self._store(row, data)
        return data, self._is_packed(row, data)

    def prefetch(self, rows: np.ndarray) -> None:
        """Begin to fetch the images of `rows` that are not on the disk, neighbors together."""
        if len(self._pending) > _MAX_PENDING:
            self._pending = {row: future for row, future in self._pending.copy().items() if not future.done()}
        missing: dict[int, list[int]] = defaultdict(list)
        for row in dict.fromkeys(rows.tolist()):
            if row not in self._pending and self._index.lengths[row] and not self._is_present(row):
                missing[self._index.shards.item(row)].append(row)
        for shard, wanted in missing.items():
            ranges = [(self._index.offsets.item(row), self._index.lengths.item(row)) for row in wanted]
            for _, _, members in joined_ranges(ranges):
                group = [wanted[member] for member in members]
                future = request_pool().submit(partial(self._fetch, shard, group))
                self._pending.update(dict.fromkeys(group, future))

    def _fetch(self, shard: int, rows: list[int]) -> None:
        """Fetch rows of a shard that one request reads; those that arrive damaged are fetched again by `read`."""
        ranges = [(self._index.offsets.item(row), self._index.lengths.item(row)) for row in rows]
        # Within the pool, which has no thread to wait for others.
        for row, data in zip(rows, read_ranges(self._paths[shard], ranges), strict=True):
            if self._is_packed(row, data):
                self._store(row, data)
                self._is_verified[row] = True

    def _is_present(self, row: int) -> bool:
        shard = self._opened(self._index.shards.item(row))
        if shard.is_whole:
            return True
        if has_hole(shard.descriptor, self._index.offsets.item(row), self._index.lengths.item(row)):
            return False
        if not self._is_verified[row]:
            self._is_verified[row] = self._is_packed(row, self._local(row))
        return bool(self._is_verified[row])

    def _is_packed(self, row: int, data: bytes) -> bool:
        return len(data) == self._index.lengths[row] and zlib.crc32(data) == self._index.checksums.item(row)

    def _local(self, row: int) -> bytes:
        shard = self._opened(self._index.shards.item(row))
        return os.pread(shard.descriptor, self._index.lengths.item(row), self._index.offsets.item(row))

    def _store(self, row: int, data: bytes) -> None:
        number = self._index.shards.item(row)
        shard = self._opened(number)
        if not shard.is_whole and self._is_packed(row, data):
            os.pwrite(shard.descriptor, data, self._index.offsets.item(row))
            count(self._paths[number], len(data))
