"""Packed images by row: one positioned read and a checksum each; and the verification of whole shards."""

import os
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from lib.dataset.decode import DecodeError
from lib.dataset.images import FIRST_PAUSE_SECONDS, NOT_AN_IMAGE_FILE, EncodedImages
from lib.dataset.lazy_image import LazyImage, Rows
from lib.dataset.upright_rgb import gray_of
from lib.errors import one_line, unquoted
from lib.runtime.read_file import open_descriptor, reason_of
from lib.shards.index import PackedIndex

# Open shards per process; the usual limit of the system is 1024 files.
MAX_OPEN = 256
_ATTEMPTS = 3
_UNUSED = 2  # references to memory that no array views: the attribute, and the argument of getrefcount
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

    def read_into(self, memory: np.ndarray, offset: int) -> int:
        """Read from `offset` on until uint8 `memory` is full or the file ends; return the number of bytes read."""
        if not hasattr(os, 'preadv'):  # Windows
            data = self.read(len(memory), offset)
            memory[: len(data)] = np.frombuffer(data, np.uint8)
            return len(data)
        view, start = memory.data, 0
        while start < len(view) and (count := os.preadv(self.descriptor, [view[start:]], offset + start)):
            start += count
        return start

    def _read(self, length: int, offset: int) -> bytes:
        if hasattr(os, 'pread'):
            return os.pread(self.descriptor, length, offset)
        with self._lock:  # Windows
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            return os.read(self.descriptor, length)


class _Memory(threading.local):
    """Memory for the pixels of one image in each thread: fresh memory takes longer than reading them from the cache."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def take(self, length: int) -> np.ndarray:
        """Return uint8 (length,), in the memory of the thread's last image unless an array still views that."""
        if len(self._memory) < length or sys.getrefcount(self._memory) > _UNUSED:
            self._memory = np.empty(length, np.uint8)
        return self._memory[:length]


class LazyRawImage:
    """An image that is stored as pixels, read when they are requested.

    Attributes:
        width, height: pixels.
        warning: '', as it is not decoded.
    """

    __slots__ = ('_images', '_row', 'height', 'width')
    warning = ''

    def __init__(self, images: 'ShardImages', row: int, width: int, height: int) -> None:
        """Set the row of the image, and its size according to the index."""
        self._images, self._row, self.width, self.height = images, row, width, height

    def pixels(self, scale: float, rows: Rows | None = None) -> tuple[np.ndarray, int]:
        """Return the pixels, reduction 1. Raises: DecodeError."""
        return self._images.read_pixels(self._row, rows or (0, self.height)), 1

    def gray_pixels(self) -> np.ndarray:
        """Return all pixels in grayscale, uint8 (height, width). Raises: DecodeError."""
        return gray_of(self.pixels(1.0)[0])


class ShardImages(EncodedImages):
    """The packed images of a split. Pickled as the path of the index: each process maps and opens the files itself.

    A process that unpickles it compares no checksum of the index, which the first process has done.

    Every read is compared with the checksum computed when packing, which takes about a hundredth of the time of
    decoding: any damage to a shard or its index (truncation, replacement, a flipped bit) is a DecodeError, never wrong
    pixels. Of images that are stored as pixels, a process compares the first read only, since the checksum takes half
    of the time of the crop; later it reads the rows that a crop needs.
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
        self._memory = _Memory()
        self._is_verified = np.zeros(len(self) if self.index.is_raw else 0, bool)

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
        data = self._read(row, lambda shard: shard.read(length, offset))
        self._check(row, data, length)
        return data

    def open(self, row: int) -> LazyImage:
        """Return an image of which at least the size is known. Raises: OSError, DecodeError."""
        if not self.index.is_raw:
            return super().open(row)
        row = int(row)
        length, width, height = self._length(row), self.index.widths.item(row), self.index.heights.item(row)
        if width < 1 or height < 1 or 3 * width * height > length:
            raise DecodeError(f'{self._path(row)}, row {row}: the size of this image in the index is wrong')
        return LazyRawImage(self, row, width, height)

    def load(self, row: int) -> Image.Image:
        """Return a whole image, upright RGB. Raises: OSError, DecodeError."""
        if not self.index.is_raw:
            return super().load(row)
        return Image.fromarray(self.open(row).pixels(1.0)[0])

    def read_pixels(self, row: int, rows: Rows) -> np.ndarray:
        """Return uint8 (height, width, 3) of an image stored as pixels, with undefined values outside `rows`.

        Raises:
            DecodeError, OSError: as `read`.
        """
        width, height = self.index.widths.item(row), self.index.heights.item(row)
        length, offset = self._length(row), self.index.offsets.item(row)
        memory = self._memory.take(length)
        first = length - 3 * width * height  # the header is before
        start, stop = 0, length
        if self._is_verified[row]:
            start, stop = first + 3 * width * rows[0], first + 3 * width * rows[1]
        part = memory[start:stop]
        count = self._read(row, lambda shard: shard.read_into(part, offset + start))
        if self._is_verified[row]:
            self._check_length(row, count, len(part))
        else:
            self._check(row, memory.data[:count], length)
            self._is_verified[row] = True
        return memory[first:].reshape(height, width, 3)

    def _length(self, row: int) -> int:
        """Return the bytes of an image. Raises: DecodeError, if nothing is stored."""
        length = self.index.lengths.item(row)
        if not length:
            raise DecodeError(f'was packed without its pixels: {one_line(str(self.index.faults[row]))[:200]}')
        return length

    def _read(self, row: int, work: Callable[[OpenShard], Result]) -> Result:
        try:
            return self._attempt(self._path(row), work)
        except NOT_AN_IMAGE_FILE as error:
            reason = 'is missing' if isinstance(error, FileNotFoundError) else reason_of(error)
            raise DecodeError(f'{self._path(row)}, row {row}: this shard {reason}') from None

    def _check(self, row: int, data: bytes | memoryview, length: int) -> None:
        self._check_length(row, len(data), length)
        if zlib.crc32(data) != self.index.checksums.item(row):
            raise DecodeError(f'{self._path(row)}, row {row}: the bytes are not those that were packed')

    def _check_length(self, row: int, found: int, expected: int) -> None:
        if found < expected:
            raise DecodeError(f'{self._path(row)}, row {row}: the shard is truncated before the end of this image')

    def _path(self, row: int) -> str:
        return self._paths[self.index.shards.item(row)]

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
        for row in np.flatnonzero(index.shards == number).tolist():
            if index.lengths[row]:
                try:
                    self.images.read(row)
                except DecodeError as error:
                    return number, str(error)
            progress(1)
        return number, ''
