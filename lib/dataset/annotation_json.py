"""Annotation JSON to columns, block by block: in memory are the columns and one block, not the file's objects."""

import hashlib
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.dataset.annotation_rows import Entry, Rows, read_rows, rows_of
from lib.dataset.paths import strings

BLOCK_BYTES = 1 << 21  # larger ones leave the processor's cache, smaller ones make the threads wait for each other
_AHEAD = 4  # blocks waiting for the threads that parse them
_CUTS = 8  # ends of objects tried in a block; the last one may lie in a nested object or in a text
_HEAD = re.compile(rb'\s*\{\s*(?:"num_classes"\s*:\s*[0-9]+\s*,\s*)?"annotations"\s*:\s*\[')
_LAST_NARROW = 2**31 - 1


class _File(msgspec.Struct):
    annotations: list[Entry]
    num_classes: int


class OtherForm(Exception):
    """The file is not of the form that can be read in blocks, or not sound."""


@dataclass(frozen=True)
class Beginning:
    """What a file is known to begin with: its first `num_bytes`, by their SHA-256, hold these entries.

    It ends after an entry's comma, so a file that only grew can be read from there on.
    """

    num_bytes: int
    digest: str
    paths: pa.Array
    labels: np.ndarray


@dataclass(frozen=True)
class Parsed:
    """The columns of an annotation file.

    Attributes:
        paths: (num_images,) Arrow strings: 32-bit offsets, 64-bit ones from 2 GiB of text on.
        labels: (num_images,) int32, as written: whether they are in range is not looked at.
        num_classes: as written.
        prints: (num_images,) uint64, a fingerprint of each path: equal ones have equal fingerprints.
        digest: SHA-256 of the file.
        beginning: (bytes, their SHA-256, entries in them): see Beginning; (0, '', 0) when there is none.
    """

    paths: pa.Array
    labels: np.ndarray
    num_classes: int
    prints: np.ndarray
    digest: str
    beginning: tuple[int, str, int] = (0, '', 0)

    @property
    def has_empty_path(self) -> bool:
        """Whether a path is the empty text."""
        return len(self.paths) > 0 and pc.min(pc.binary_length(self.paths)).as_py() == 0


class _Columns:
    """Columns that grow by rows."""

    def __init__(self, known: Beginning | None = None) -> None:
        self._text = bytearray()
        self._lengths: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._prints: list[np.ndarray] = []
        self.num_rows = 0
        if known:
            _, offsets, text = known.paths.buffers()
            wide = np.int64 if pa.types.is_large_string(known.paths.type) else np.int32
            offsets = np.frombuffer(offsets, wide)[: len(known.paths) + 1]
            self.add(Rows.of(memoryview(text)[: offsets[-1]], np.diff(offsets), known.labels))

    def add(self, rows: Rows) -> None:
        self._text += rows.text
        self._lengths.append(rows.lengths)
        self._labels.append(rows.labels)
        self._prints.append(rows.prints)
        self.num_rows += len(rows.labels)

    def finish(self) -> tuple[pa.Array, np.ndarray, np.ndarray]:
        """Return paths, labels, prints."""
        offsets = np.zeros(self.num_rows + 1, np.int32 if len(self._text) <= _LAST_NARROW else np.int64)
        np.cumsum(np.concatenate(self._lengths), out=offsets[1:])
        paths = strings(self.num_rows, offsets, memoryview(self._text))
        return paths, np.concatenate(self._labels), np.concatenate(self._prints)


def parse_in_blocks(file: BinaryIO, known: Beginning | None = None, block_bytes: int = BLOCK_BYTES) -> Parsed:
    """Read `{"annotations": [...], "num_classes": C}` (num_classes may come first) to its end.

    `known` saves parsing what the file may begin with; where it does not, everything is parsed.

    Raises:
        OtherForm: other keys come first, or anything is wrong. The whole file, read at once, will tell.
        OSError: from reading.
    """
    try:
        try:
            return _Reading(file, block_bytes).run(known, ahead=True)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            file.seek(0)
            return _Reading(file, block_bytes).run(known, ahead=False)
    except (msgspec.DecodeError, UnicodeError, OverflowError, RecursionError) as error:
        raise OtherForm from error


def parse_whole(data: bytes) -> Parsed:
    """Read a file that has other keys before its annotations, at the price of all its objects in memory.

    Raises:
        OtherForm: it is not sound.
    """
    try:
        file = msgspec.json.decode(data, type=_File)
        columns = _Columns()
        columns.add(rows_of(file.annotations))
    except (msgspec.DecodeError, UnicodeError, OverflowError, RecursionError) as error:
        raise OtherForm from error
    paths, labels, prints = columns.finish()
    return Parsed(paths, labels, file.num_classes, prints, hashlib.sha256(data).hexdigest())


class _Reading:
    """One pass over a file."""

    def __init__(self, file: BinaryIO, block_bytes: int) -> None:
        self._file, self._block_bytes = file, block_bytes
        self._sha = hashlib.sha256()
        self._num_bytes = 0

    def run(self, known: Beginning | None, ahead: bool) -> Parsed:
        """Read the file; `ahead`: two threads parse, each block's last comma between braces taken for an entry's."""
        first = self._file.read(self._block_bytes)
        found = _HEAD.match(first)
        if not found:
            raise OtherForm
        head, data = found[0], b''
        if known and self._begins_with(known):
            columns = _Columns(known)
        else:
            columns = _Columns()
            self._file.seek(len(first))
            self._pass(head)
            data = first[len(head) :]
        with ThreadPoolExecutor(2) as workers:
            pending: deque[Future] = deque()
            while block := self._file.read(self._block_bytes):
                cut = block.rfind(b'},') if ahead else -1
                if cut >= 0:
                    # One copy of every byte, no more: memory that is new costs as much as parsing it.
                    entries = b''.join((data, memoryview(block)[: cut + 1]))
                    pending.append(workers.submit(read_rows, entries))
                    self._pass(entries)
                    self._pass(b',')
                    data = block[cut + 2 :]
                else:
                    data += block
                    end = self._read_to_cut(data, columns) if not ahead else 0
                    self._pass(data[:end])
                    data = data[end:]
                    if not end and len(data) > 16 * self._block_bytes:
                        raise OtherForm
                while len(pending) > _AHEAD:
                    columns.add(pending.popleft().result())
            for rows in pending:
                columns.add(rows.result())
        return self._end(head, data, columns)

    def _begins_with(self, known: Beginning) -> bool:
        """Read past what is known, if the file begins with it."""
        self._file.seek(0)
        sha, left = hashlib.sha256(), known.num_bytes
        while left and (block := self._file.read(min(left, self._block_bytes))):
            sha.update(block)
            left -= len(block)
        if left or sha.hexdigest() != known.digest:
            return False
        self._sha, self._num_bytes = sha, known.num_bytes
        return True

    def _read_to_cut(self, data: bytes, columns: _Columns) -> int:
        """Add the entries at the start of `data` up to one of the last commas between two; return where they end.

        A cut is right exactly when what lies before it, closed by a bracket, is a list: inside a text or a nested
        object the bracket would be part of the text or close the wrong thing.
        """
        cut = len(data)
        for _ in range(_CUTS):
            cut = data.rfind(b'},', 0, cut)
            if cut < 0:
                break
            try:
                columns.add(read_rows(data[: cut + 1]))
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                continue
            return cut + 2
        if cut >= 0:
            raise OtherForm
        return 0

    def _end(self, head: bytes, data: bytes, columns: _Columns) -> Parsed:
        """Read the last entries and what follows them, as a small file of its own."""
        rows = columns.num_rows
        begun = (self._num_bytes, self._sha.hexdigest(), rows) if rows else (0, '', 0)
        # JSON takes the last of two equal keys, which the blocks so far may not be.
        if rows and b'"annotations"' in data:
            raise OtherForm
        file = msgspec.json.decode(head + data, type=_File)
        if rows and not file.annotations:  # a comma too many before the closing bracket
            raise OtherForm
        columns.add(rows_of(file.annotations))
        self._pass(data)
        paths, labels, prints = columns.finish()
        return Parsed(paths, labels, file.num_classes, prints, self._sha.hexdigest(), begun)

    def _pass(self, data: bytes) -> None:
        self._num_bytes += len(data)
        self._sha.update(data)
