"""Packed images by row: one positioned read and a checksum each; and the verification of whole shards."""

import mmap
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from lib.dataset.decode import DecodeError
from lib.dataset.images import FIRST_PAUSE_SECONDS, NOT_AN_IMAGE_FILE, EncodedImages
from lib.dataset.lazy_image import LazyImage, LazyPixelImage
from lib.errors import one_line, unquoted
from lib.runtime.mirror import is_mirrored, url_of
from lib.runtime.read_file import open_descriptor, reason_of
from lib.runtime.uploads import forget_ranges
from lib.shards.index import PackedIndex
from lib.shards.remote import RemoteShards

# Open shards per process; the usual limit of the system is 1024 files.
MAX_OPEN = 256
_ATTEMPTS = 3
_AHEAD = 128  # images that are fetched together, where a shard in a bucket is verified
Result = TypeVar('Result')


class OpenShard:
    """A file that is closed with its last reference, so that its removal from the cache never breaks a pending read."""

    def __init__(self, path: str) -> None:
        """Open the file at `path`."""
        self.descriptor, _ = open_descriptor(path)
        self._lock = threading.Lock()
        if hasattr(os, 'posix_fadvise'):
            # Without this, the system reads 128 kB ahead for an image of 10 kB.
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        if hasattr(self, 'descriptor'):
            os.close(self.descriptor)

    def read(self, length: int, offset: int) -> bytes:
        """Return `length` bytes from `offset` on, fewer at the end of the file."""
        data = self._read(length, offset)
        # A network disk may return a part.
        while len(data) < length and (more := self._read(length - len(data), offset + len(data))):
            data += more
        return data

    def view(self, length: int, offset: int) -> np.ndarray:
        """Return the bytes in the mapped file, uint8 (length,); none if it ends before. Changing them changes no file.

        The size of the file is compared, because a process that reads beyond the end of a mapped file is killed.
        """
        if os.fstat(self.descriptor).st_size < offset + length:
            return np.empty(0, np.uint8)
        return self._mapped[offset : offset + length]

    @cached_property
    def _mapped(self) -> np.ndarray:
        # Read-only memory would have to be copied for torch.
        return np.frombuffer(mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_COPY), np.uint8)

    def _read(self, length: int, offset: int) -> bytes:
        if hasattr(os, 'pread'):
            return os.pread(self.descriptor, length, offset)
        with self._lock:  # Windows
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            return os.read(self.descriptor, length)


class ShardImages(EncodedImages):
    """The packed images of a split. Pickled as the path of the index: each process maps and opens the files itself.

    A process that unpickles it compares no checksum of the index, which the first process has done.

    Every read is compared with the checksum computed when packing, which takes about a hundredth of the time of
    decoding: any damage to a shard or its index (truncation, replacement, a flipped bit) is a DecodeError, never wrong
    pixels. For images that are stored as pixels, a process verifies only the first read, since the checksum takes half
    of the time of a crop; then it maps them, so that a crop reads only the part that it needs. Shards in a bucket are
    read by ranges: see lib/shards/remote.py.
    """

    def __init__(self, path: str | os.PathLike, max_open: int = MAX_OPEN, *, identity: tuple[int, ...] = ()) -> None:
        """Open the index at `path`; at most `max_open` shards, the last used ones, stay open.

        Args:
            identity: as in PackedIndex.

        Raises:
            UserError: the index cannot be used.
        """
        self.index = PackedIndex(Path(path), identity)
        self._max_open = max_open
        self._paths = [str(self.index.path.with_name(shard.name)) for shard in self.index.contents.shards]
        self._opened = lru_cache(max_open)(OpenShard)
        self._is_verified = np.zeros(len(self) if self.index.is_raw else 0, bool)
        self.is_remote = is_mirrored(self.index.path)
        self._remote = RemoteShards(self.index, self._paths, max_open) if self.is_remote else None

    def __reduce__(self) -> tuple:
        return partial(type(self), identity=self.index.identity), (str(self.index.path), self._max_open)

    def __len__(self) -> int:
        return len(self.index)

    def name(self, row: int) -> str:
        """Return the shard and the annotated path, for messages."""
        return f'{self._path(int(row))} ({unquoted(str(self.index.names[int(row)]))})'

    def read(self, row: int) -> bytes:
        """Return the bytes of an image.

        Raises:
            DecodeError: they are missing or not the packed ones; the message names shard and row.
            OSError: the disk or the network fails repeatedly.
        """
        row = int(row)
        length, offset = self._length(row), self.index.offsets.item(row)
        if self._remote is None:
            data, is_packed = self._read(row, lambda shard: shard.read(length, offset)), False
        else:
            with self._missing_is_damage(row):
                data, is_packed = self._remote.read(row)
        if not is_packed:
            self._check(row, data, length)
        return data

    def prefetch(self, rows: np.ndarray) -> None:
        """Begin to fetch images in a bucket, so that `read` waits less."""
        if self._remote is not None:
            self._remote.prefetch(rows)

    def open(self, row: int) -> LazyImage:
        """Return an image of which at least the header is read. Raises: OSError, DecodeError."""
        return LazyPixelImage(self._pixels(int(row))) if self.index.is_raw else super().open(row)

    def load(self, row: int) -> Image.Image:
        """Return a whole image, upright RGB. Raises: OSError, DecodeError."""
        return Image.fromarray(self._pixels(int(row))) if self.index.is_raw else super().load(row)

    def _pixels(self, row: int) -> np.ndarray:
        """Return the mapped pixels of an image stored as such, uint8 (height, width, 3). Raises: as `read`."""
        data = self.read(row) if self.is_remote or not self._is_verified[row] else b''
        self._is_verified[row] = True
        width, height = self.index.widths.item(row), self.index.heights.item(row)
        num_bytes, length = 3 * width * height, self.index.lengths.item(row)
        if width < 1 or height < 1 or num_bytes > length:
            raise DecodeError(f'{self._path(row)}, row {row}: the size of this image in the index is wrong')
        if self.is_remote:  # its file may lose blocks at any time
            return np.frombuffer(bytearray(data), np.uint8, num_bytes, length - num_bytes).reshape(height, width, 3)
        offset = self.index.offsets.item(row) + length - num_bytes  # the header is before
        pixels = self._read(row, lambda shard: shard.view(num_bytes, offset))
        self._check_length(row, len(pixels), num_bytes)
        return pixels.reshape(height, width, 3)

    def _length(self, row: int) -> int:
        """Return the bytes of an image. Raises: DecodeError, if nothing is stored."""
        length = self.index.lengths.item(row)
        if not length:
            raise DecodeError(f'was packed without its pixels: {one_line(str(self.index.faults[row]))[:200]}')
        return length

    def _read(self, row: int, work: Callable[[OpenShard], Result]) -> Result:
        with self._missing_is_damage(row):
            return self._attempt(self._paths[self.index.shards.item(row)], work)

    @contextmanager
    def _missing_is_damage(self, row: int) -> Iterator[None]:
        try:
            yield
        except NOT_AN_IMAGE_FILE as error:
            reason = 'is missing' if isinstance(error, FileNotFoundError) else reason_of(error)
            raise DecodeError(f'{self._path(row)}, row {row}: this shard {reason}') from None

    def _check(self, row: int, data: bytes, length: int) -> None:
        self._check_length(row, len(data), length)
        if zlib.crc32(data) != self.index.checksums.item(row):
            raise DecodeError(f'{self._path(row)}, row {row}: the bytes are not those that were packed')

    def _check_length(self, row: int, found: int, expected: int) -> None:
        if found < expected:
            raise DecodeError(f'{self._path(row)}, row {row}: the shard is truncated before the end of this image')

    def _path(self, row: int) -> str:
        """Return the shard of an image, for messages."""
        return url_of(self._paths[self.index.shards.item(row)])

    def _attempt(self, path: str, work: Callable[[OpenShard], Result]) -> Result:
        """Read, with new attempts on the reopened file after a failure of the disk or the network."""
        for attempt in range(_ATTEMPTS):
            try:
                return work(self._opened(path))
            except (*NOT_AN_IMAGE_FILE, PermissionError):
                raise  # another attempt would fail too
            except OSError:
                self._opened.cache_clear()
                if attempt + 1 == _ATTEMPTS:
                    raise
                time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
        raise AssertionError('unreachable')


@dataclass(frozen=True)
class ShardReader:
    """Reads whole shards as training does, each image with its checksum. Any process can call it with any shard."""

    images: ShardImages

    def __call__(self, number: int, progress: Callable[[int], None]) -> tuple[int, str]:
        """Return the shard's number and its fault ('' if it has none); report each image to `progress`.

        Raises:
            OSError: it cannot be read.
        """
        index = self.images.index
        shard = index.contents.shards[number]
        path = Path(index.path).with_name(shard.name)
        if not path.exists():
            return number, f'{path}: no such file'
        if path.stat().st_size != shard.size:
            return number, f'{path}: has {path.stat().st_size} bytes, but {shard.size} were written'
        forget_ranges(path, shard.size)  # the bucket is verified, not the copy on this disk
        rows = np.flatnonzero(index.shards == number)
        for position, row in enumerate(rows.tolist()):
            if position % _AHEAD == 0:
                self.images.prefetch(rows[position : position + 2 * _AHEAD])
            if index.lengths[row]:
                try:
                    self.images.read(row)
                except DecodeError as error:
                    return number, str(error)
            progress(1)
        return number, ''
