"""Annotation JSON to columns, block by block: the columns and one block are in memory, but not the file's objects."""

import hashlib
import re
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lib.dataset.annotation_rows import Entry, EntryColumns, WeightedEntry, columns_of, may_have_weights, parse_entries
from lib.dataset.paths import strings
from lib.runtime.text import BYTE_ORDER_MARK, InvalidJson, digest_of_names, parse_json

BLOCK_BYTES = 1 << 21  # larger blocks exceed the processor's cache, with smaller ones the threads wait for each other
_MAX_PENDING = 4  # blocks that wait for the parsing threads
_MAX_CUTS = 8  # ends of objects tried in a block; the last one may be in a nested object or in a text
_HEAD = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*(?:"num_classes"\s*:\s*[0-9]+\s*,\s*)?"annotations"\s*:\s*\[')
_MAX_INT32 = 2**31 - 1
_ERRORS = (msgspec.DecodeError, InvalidJson, UnicodeError, OverflowError, RecursionError)


class _File(msgspec.Struct):
    annotations: Sequence[Entry]
    num_classes: int
    classes_digest: Any = ''  # in files of others, it may be anything


class _WeightedFile(_File):
    annotations: Sequence[WeightedEntry]


class UnsupportedForm(Exception):
    """The file cannot be read in blocks, or it is invalid."""


@dataclass(frozen=True)
class ParsedPrefix:
    """The entries in the first `num_bytes` of a file, which are identified by their SHA-256.

    The prefix ends after an entry's comma, so a file that was only appended to can be parsed from there on.
    """

    num_bytes: int
    digest: str
    paths: pa.Array
    labels: np.ndarray
    weights: np.ndarray | None = None


@dataclass(frozen=True)
class ParsedAnnotations:
    """The columns of an annotation file.

    Attributes:
        paths: (num_images,) Arrow strings: 32-bit offsets, or 64-bit ones from 2 GiB of text on.
        labels: (num_images,) int32, as written: their range is not checked.
        num_classes: as written.
        fingerprints: (num_images,) uint64, of the paths.
        digest: SHA-256 of the file.
        prefix: (bytes, their SHA-256, entries in them): see ParsedPrefix; (0, '', 0) if there is none.
        classes_digest: digest of the class names, as written; '' if there is none.
        weights: (num_images,) float32, as written: their range is not checked; None: no entry has one.
    """

    paths: pa.Array
    labels: np.ndarray
    num_classes: int
    fingerprints: np.ndarray
    digest: str
    prefix: tuple[int, str, int] = (0, '', 0)
    classes_digest: str = ''
    weights: np.ndarray | None = None

    @property
    def has_empty_path(self) -> bool:
        """Return True if a path is the empty text."""
        return len(self.paths) > 0 and pc.min(pc.binary_length(self.paths)).as_py() == 0


def parse_in_blocks(
    file: BinaryIO, prefix: ParsedPrefix | None = None, block_bytes: int = BLOCK_BYTES
) -> ParsedAnnotations:
    """Parse `{"annotations": [...], "num_classes": C}` (num_classes may come first).

    If the file starts with `prefix`, only the rest is parsed.

    Raises:
        UnsupportedForm: other keys come first, or anything is invalid. Decoding the whole file shows which.
        OSError: from reading.
    """
    try:
        try:
            return _BlockParser(file, block_bytes).run(prefix, parallel=True)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            file.seek(0)
            return _BlockParser(file, block_bytes).run(prefix, parallel=False)
    except _ERRORS as error:
        raise UnsupportedForm from error


def parse_whole(data: bytes) -> ParsedAnnotations:
    """Parse a file with other keys before its annotations; all its objects are in memory at once.

    Raises:
        UnsupportedForm: the file is invalid.
    """
    try:
        file = parse_json(data, _WeightedFile if may_have_weights(data) else _File)
        columns = _GrowingColumns()
        columns.append(columns_of(file.annotations))
    except _ERRORS as error:
        raise UnsupportedForm from error
    paths, labels, fingerprints, weights = columns.finish()
    digest, of_names = hashlib.sha256(data).hexdigest(), digest_of_names(file.classes_digest)
    return ParsedAnnotations(
        paths, labels, file.num_classes, fingerprints, digest, classes_digest=of_names, weights=weights
    )


class _GrowingColumns:
    """Columns to which entries are appended, starting with those of a parsed prefix."""

    def __init__(self, prefix: ParsedPrefix | None = None) -> None:
        self._text = bytearray()
        self._lengths: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._fingerprints: list[np.ndarray] = []
        self._weights: list[np.ndarray | None] = []
        self.num_rows = 0
        if prefix:
            _, offsets, text = prefix.paths.buffers()
            dtype = np.int64 if pa.types.is_large_string(prefix.paths.type) else np.int32
            offsets = np.frombuffer(offsets, dtype)[: len(prefix.paths) + 1]
            text = memoryview(text)[: offsets[-1]]
            self.append(EntryColumns.of(text, np.diff(offsets), prefix.labels, prefix.weights))

    def append(self, entries: EntryColumns) -> None:
        self._text += entries.text
        self._lengths.append(entries.lengths)
        self._labels.append(entries.labels)
        self._fingerprints.append(entries.fingerprints)
        self._weights.append(entries.weights)
        self.num_rows += len(entries.labels)

    def finish(self) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray | None]:
        """Return paths, labels, fingerprints and weights."""
        offsets = np.zeros(self.num_rows + 1, np.int32 if len(self._text) <= _MAX_INT32 else np.int64)
        np.cumsum(np.concatenate(self._lengths), out=offsets[1:])
        paths = strings(self.num_rows, offsets, np.frombuffer(self._text, np.uint8))
        weights = None
        if any(column is not None for column in self._weights):
            pairs = zip(self._labels, self._weights, strict=True)
            weights = np.concatenate([np.ones(len(rows), np.float32) if w is None else w for rows, w in pairs])
            weights = None if (weights == 1).all() else weights
        return paths, np.concatenate(self._labels), np.concatenate(self._fingerprints), weights


class _BlockParser:
    """One pass over a file."""

    def __init__(self, file: BinaryIO, block_bytes: int) -> None:
        self._file, self._block_bytes = file, block_bytes
        self._sha = hashlib.sha256()
        self._num_bytes = 0

    def run(self, prefix: ParsedPrefix | None, parallel: bool) -> ParsedAnnotations:
        """Parse the file; with `parallel` in two threads, assuming that the last `},` of a block ends an entry."""
        first = self._file.read(self._block_bytes)
        match = _HEAD.match(first)
        if not match:
            raise UnsupportedForm
        head, data = match[0], b''
        if prefix and self._starts_with(prefix):
            columns = _GrowingColumns(prefix)
        else:
            columns = _GrowingColumns()
            self._file.seek(len(first))
            self._digest(head)
            data = first[len(head) :]
        with ThreadPoolExecutor(2) as workers:
            pending: deque[Future] = deque()
            while block := self._file.read(self._block_bytes):
                cut = block.rfind(b'},') if parallel else -1
                if cut >= 0:
                    # Each byte is copied only once: touching fresh memory costs as much as parsing it.
                    entries = b''.join((data, memoryview(block)[: cut + 1]))
                    pending.append(workers.submit(parse_entries, entries))
                    self._digest(entries)
                    self._digest(b',')
                    data = block[cut + 2 :]
                else:
                    data += block
                    end = self._parse_to_cut(data, columns) if not parallel else 0
                    self._digest(data[:end])
                    data = data[end:]
                    if not end and len(data) > 16 * self._block_bytes:
                        raise UnsupportedForm
                while len(pending) > _MAX_PENDING:
                    columns.append(pending.popleft().result())
            for result in pending:
                columns.append(result.result())
        return self._finish(head, data, columns)

    def _starts_with(self, prefix: ParsedPrefix) -> bool:
        """Read the prefix; return True if the file starts with it."""
        self._file.seek(0)
        sha, num_left = hashlib.sha256(), prefix.num_bytes
        while num_left and (block := self._file.read(min(num_left, self._block_bytes))):
            sha.update(block)
            num_left -= len(block)
        if num_left or sha.hexdigest() != prefix.digest:
            return False
        self._sha, self._num_bytes = sha, prefix.num_bytes
        return True

    def _parse_to_cut(self, data: bytes, columns: _GrowingColumns) -> int:
        """Append the entries at the start of `data` up to one of the last commas between entries; return their end.

        A cut is valid exactly if the bytes before it, closed by a bracket, are a list: within a text or a nested object
        the bracket would be part of the text or close the wrong object.
        """
        cut = len(data)
        for _ in range(_MAX_CUTS):
            cut = data.rfind(b'},', 0, cut)
            if cut < 0:
                break
            try:
                columns.append(parse_entries(data[: cut + 1]))
            except msgspec.ValidationError:
                raise
            except msgspec.DecodeError:
                continue
            return cut + 2
        if cut >= 0:
            raise UnsupportedForm
        return 0

    def _finish(self, head: bytes, data: bytes, columns: _GrowingColumns) -> ParsedAnnotations:
        """Parse the last entries and what follows them as a separate small file."""
        num_rows = columns.num_rows
        prefix = (self._num_bytes, self._sha.hexdigest(), num_rows) if num_rows else (0, '', 0)
        # JSON uses the last of two equal keys, which may not be the one parsed so far.
        if num_rows and b'"annotations"' in data:
            raise UnsupportedForm
        form = _WeightedFile if may_have_weights(data) else _File
        file = msgspec.json.decode((head + data).removeprefix(BYTE_ORDER_MARK), type=form)
        if num_rows and not file.annotations:  # an extra comma before the closing bracket
            raise UnsupportedForm
        columns.append(columns_of(file.annotations))
        self._digest(data)
        paths, labels, fingerprints, weights = columns.finish()
        digest = self._sha.hexdigest()
        of_names = digest_of_names(file.classes_digest)
        return ParsedAnnotations(paths, labels, file.num_classes, fingerprints, digest, prefix, of_names, weights)

    def _digest(self, data: bytes) -> None:
        self._num_bytes += len(data)
        self._sha.update(data)
