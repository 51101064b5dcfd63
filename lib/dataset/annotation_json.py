"""Annotation JSON to columns, block by block: in memory are the columns and one block, not the file's objects."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.dataset.paths import strings

BLOCK_BYTES = 1 << 20  # small enough for the processor's cache: twice as fast as 8 MB
_CUTS = 8  # ends of objects tried in a block; the last one may lie in a nested object or in a text
_HEAD = re.compile(rb'\s*\{\s*(?:"num_classes"\s*:\s*[0-9]+\s*,\s*)?"annotations"\s*:\s*\[')
_LAST_NARROW = 2**31 - 1


class _Entry(msgspec.Struct, gc=False):
    fpath: str
    category_id: int


class _File(msgspec.Struct):
    annotations: list[_Entry]
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
        may_repeat: False when no path comes twice; True when one may (two paths may share a hash).
        digest: SHA-256 of the file.
        beginning: (bytes, their SHA-256, entries in them): see Beginning; (0, '', 0) when there is none.
    """

    paths: pa.Array
    labels: np.ndarray
    num_classes: int
    may_repeat: bool
    digest: str
    beginning: tuple[int, str, int] = (0, '', 0)

    @property
    def has_empty_path(self) -> bool:
        """Whether a path is the empty text."""
        return len(self.paths) > 0 and pc.min(pc.binary_length(self.paths)).as_py() == 0


class _Columns:
    """Columns that grow by entries."""

    def __init__(self, known: Beginning | None = None) -> None:
        self._text = bytearray()
        self._lengths: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._hashes: list[np.ndarray] = []
        self._known = known
        self.num_rows = 0
        if known:
            self.num_rows = len(known.paths)
            _, offsets, text = known.paths.buffers()
            wide = np.int64 if pa.types.is_large_string(known.paths.type) else np.int32
            offsets = np.frombuffer(offsets, wide)[: self.num_rows + 1]
            self._text += memoryview(text)[: offsets[-1]]
            self._lengths.append(np.diff(offsets))
            self._labels.append(known.labels)

    def add(self, entries: list[_Entry]) -> None:
        paths = [entry.fpath for entry in entries]
        self._labels.append(np.fromiter([entry.category_id for entry in entries], np.int32, len(entries)))
        text = ''.join(paths)
        if text.isascii():
            self._text += text.encode()
            lengths = map(len, paths)
        else:
            encoded = [path.encode() for path in paths]
            self._text += b''.join(encoded)
            lengths = map(len, encoded)
        self._lengths.append(np.fromiter(lengths, np.int32, len(paths)))
        self._hashes.append(np.fromiter(map(hash, paths), np.int64, len(paths)))
        self.num_rows += len(paths)

    def finish(self) -> tuple[pa.Array, np.ndarray, bool]:
        """Return paths, labels, may_repeat."""
        wide = np.int32 if len(self._text) <= _LAST_NARROW else np.int64
        offsets = np.zeros(self.num_rows + 1, wide)
        np.cumsum(np.concatenate(self._lengths), out=offsets[1:])
        paths = strings(self.num_rows, offsets, self._text)
        may_repeat = _has_equals(np.concatenate(self._hashes))
        if self._known and not may_repeat:
            old, new = paths[: len(self._known.labels)], paths[len(self._known.labels) :]
            # Python's hashes are another run's by now, so the new paths are looked for among the old ones.
            few, many = sorted((old, new), key=len)
            may_repeat = bool(pc.any(pc.is_in(many, value_set=few)).as_py())
        return paths, np.concatenate(self._labels), may_repeat


def _has_equals(numbers: np.ndarray) -> bool:
    # Two threads sort half of them each.
    below = numbers < 0
    with ThreadPoolExecutor(2) as workers:
        halves = list(workers.map(np.sort, (numbers[below], numbers[~below])))
    return any(bool((half[1:] == half[:-1]).any()) for half in halves)


def parse_in_blocks(file: BinaryIO, known: Beginning | None = None, block_bytes: int = BLOCK_BYTES) -> Parsed:
    """Read `{"annotations": [...], "num_classes": C}` (num_classes may come first) to its end.

    `known` saves parsing what the file may begin with; where it does not, everything is parsed.

    Raises:
        OtherForm: other keys come first, or anything is wrong. The whole file, read at once, will tell.
        OSError: from reading.
    """
    # One thread hashes what another one parses.
    with ThreadPoolExecutor(1) as worker:
        try:
            return _Reading(file, worker, block_bytes).run(known)
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
        columns.add(file.annotations)
    except (msgspec.DecodeError, UnicodeError, OverflowError, RecursionError) as error:
        raise OtherForm from error
    paths, labels, may_repeat = columns.finish()
    return Parsed(paths, labels, file.num_classes, may_repeat, hashlib.sha256(data).hexdigest())


class _Reading:
    """One pass over a file."""

    def __init__(self, file: BinaryIO, worker: ThreadPoolExecutor, block_bytes: int) -> None:
        self._file, self._worker, self._block_bytes = file, worker, block_bytes
        self._sha = hashlib.sha256()
        self._num_bytes = 0
        self._decode = msgspec.json.Decoder(list[_Entry]).decode

    def run(self, known: Beginning | None) -> Parsed:
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
        while block := self._file.read(self._block_bytes):
            data += block
            entries, end = self._entries(data)
            columns.add(entries)
            self._pass(data[:end])
            data = data[end:]
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

    def _entries(self, data: bytes) -> tuple[list[_Entry], int]:
        """Return the entries at the start of `data` up to one of the last commas between two, and where they end.

        A cut is right exactly when what lies before it, closed by a bracket, is a list: inside a text or a nested
        object the bracket would be part of the text or close the wrong thing.
        """
        cut = len(data)
        for _ in range(_CUTS):
            cut = data.rfind(b'},', 0, cut)
            if cut < 0:
                break
            try:
                return self._decode(b'[' + data[: cut + 1] + b']'), cut + 2
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                continue
        if cut >= 0 or len(data) > 16 * self._block_bytes:
            raise OtherForm
        return [], 0

    def _end(self, head: bytes, data: bytes, columns: _Columns) -> Parsed:
        """Read the last entries and what follows them, as a small file of its own."""
        rows = columns.num_rows
        begun = (self._num_bytes, self._worker.submit(self._sha.hexdigest).result(), rows) if rows else (0, '', 0)
        # JSON takes the last of two equal keys, which the blocks so far may not be.
        if rows and b'"annotations"' in data:
            raise OtherForm
        file = msgspec.json.decode(head + data, type=_File)
        if rows and not file.annotations:  # a comma too many before the closing bracket
            raise OtherForm
        columns.add(file.annotations)
        self._pass(data)
        paths, labels, may_repeat = columns.finish()
        digest = self._worker.submit(self._sha.hexdigest).result()
        return Parsed(paths, labels, file.num_classes, may_repeat, digest, begun)

    def _pass(self, data: bytes) -> None:
        self._num_bytes += len(data)
        self._worker.submit(self._sha.update, data)
