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
from functools import lru_cache

import numpy as np

from lib.errors import UserError
from lib.runtime.bucket import joined_ranges
from lib.runtime.mirror import count, has_hole, is_here, limit_of, open_sparse, writing_to_cache
from lib.runtime.read_file import open_descriptor
from lib.runtime.storage import read_ranges, request_pool
from lib.shards.index import PackedIndex

_ATTEMPTS, _FIRST_PAUSE_SECONDS = 3, 0.1
_BLOCK_BYTES, _SHARE = 512 << 10, 0.5  # the latter as a fraction of the cache
_PAGE_BYTES = 4096
_MAX_PENDING = 20_000  # rows that were fetched ahead, but not read: of epochs that ended early


class _Shard:
    """A sparse file, or the shard itself where this machine has written it; closed with its last reference."""

    def __init__(self, path: str, size: int) -> None:
        self.is_whole = is_here(path)
        with writing_to_cache(path):
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
        self._is_ordered = bool((index.shards[1:] >= index.shards[:-1]).all())
        # In an epoch, all images of a block are read. Where the cache holds all of them, fewer requests fetch them.
        num_bytes = sum(shard.size for shard in index.contents.shards)
        fits = self._is_ordered and num_bytes <= _SHARE * limit_of(index.path)
        self._block_bytes = _BLOCK_BYTES if fits else 1

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
        missing: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for row in dict.fromkeys(rows.tolist()):
            if row not in self._pending and self._index.lengths[row] and not self._is_present(row):
                missing[self._index.shards.item(row)].append(self._range_around(row))
        for shard, ranges in missing.items():
            for offset, length, _ in joined_ranges(ranges):
                inside = self._rows_inside(shard, offset, length)
                future = request_pool().submit(self._fetch, shard, offset, length, inside)
                for row in inside:
                    self._pending.setdefault(row, future)

    def _range_around(self, row: int) -> tuple[int, int]:
        """Return (offset, length) of the request for an image: of its blocks, if the cache holds all images."""
        offset, length = self._index.offsets.item(row), self._index.lengths.item(row)
        if self._block_bytes == 1:
            return offset, length
        size = self._index.contents.shards[self._index.shards.item(row)].size
        start = offset // self._block_bytes * self._block_bytes
        end = -(-(offset + length) // self._block_bytes) * self._block_bytes
        return start, min(end, size) - start

    def _rows_inside(self, shard: int, offset: int, length: int) -> list[int]:
        """Return the rows whose whole image is in a range of a shard."""
        first, last = 0, len(self._index)
        if self._is_ordered:
            first, last = np.searchsorted(self._index.shards, [shard, shard + 1]).tolist()
        starts, lengths = self._index.offsets[first:last], self._index.lengths[first:last]
        inside = (starts >= offset) & (starts + lengths <= offset + length) & (lengths > 0)
        inside &= self._index.shards[first:last] == shard
        return (first + np.flatnonzero(inside)).tolist()

    def _fetch(self, shard: int, offset: int, length: int, rows: list[int]) -> None:
        """Fetch a range and store its images; those that arrive damaged are fetched again by `read`."""
        # Within the pool, which has no thread to wait for others.
        (block,) = read_ranges(self._paths[shard], [(offset, length)])
        for row in rows:
            start = self._index.offsets.item(row) - offset
            if self._store(row, block[start : start + self._index.lengths.item(row)]):
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

    def _store(self, row: int, data: bytes) -> bool:
        """Write an image to the disk, unless it is damaged; return whether it is not."""
        if not self._is_packed(row, data):
            return False
        number = self._index.shards.item(row)
        shard = self._opened(number)
        if not shard.is_whole:
            with writing_to_cache(self._paths[number]):
                os.pwrite(shard.descriptor, data, self._index.offsets.item(row))
            count(self._paths[number], len(data) + _PAGE_BYTES)  # the disk stores whole pages
        return True
