"""Annotation entries: JSON to columns.

Entries that are all written alike are parsed by the positions of their quotes, others by msgspec.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

MAX_CLASSES = 50_000_000  # more would be a mistake: the counts and names alone take gigabytes
_QUOTE = ord('"')
_ENTRY = re.compile(
    rb' (\{ "category_id" : )[0-9]{1,8}( , "fpath" : ")[^"]*(" \})(?:( , )\{|\Z)'.replace(b' ', rb'[ \t\r\n]*')
)
_QUOTES_PER_ENTRY, _MAX_DIGITS = 6, 8
_CHUNK_ROWS = 1 << 16  # fingerprints computed at a time, which fit into the processor's cache
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
_ZEROS = np.uint64(0x3030303030303030)
_PRIMES = np.array([0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F], np.uint64)


class Entry(msgspec.Struct, gc=False):
    """One annotation; other fields of its object are ignored."""

    fpath: str
    category_id: int


class WeightedEntry(Entry, gc=False):
    """An annotation with the weight of its image in the loss."""

    weight: float = 1.0


class EntryColumns(NamedTuple):
    """Entries as columns.

    Attributes:
        text: the UTF-8 bytes of all paths, concatenated.
        lengths: (num_entries,) bytes of each path.
        labels: (num_entries,) int32.
        fingerprints: (num_entries,) uint64, of the paths.
        weights: (num_entries,) float32; None: all 1.
    """

    text: bytes | memoryview
    lengths: np.ndarray
    labels: np.ndarray
    fingerprints: np.ndarray
    weights: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        text: bytes | memoryview,
        lengths: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> 'EntryColumns':
        """Return the columns with the fingerprints of the paths."""
        return cls(text, lengths, labels, fingerprints(text, lengths), weights)


_decode_entries = msgspec.json.Decoder(list[Entry]).decode
_decode_weighted_entries = msgspec.json.Decoder(list[WeightedEntry]).decode


def may_have_weights(data: bytes) -> bool:
    """Return whether entries in `data` may have a weight; the form without one is decoded faster."""
    return b'w' in data and b'"weight"' in data  # a single byte is found twenty times as fast


def parse_entries(block: bytes) -> EntryColumns:
    """Parse entries, from the opening brace of the first to the closing brace of the last.

    Raises:
        msgspec.DecodeError: not a list of entries.
        OverflowError: a label exceeds 32 bits.
    """
    columns = _parse_uniform(block)
    if columns is not None:
        return columns
    entries = b'[' + block + b']'
    return columns_of(_decode_weighted_entries(entries) if may_have_weights(block) else _decode_entries(entries))


def columns_of(entries: Sequence[Entry]) -> EntryColumns:
    """Return decoded entries as columns. Raises OverflowError if a label exceeds 32 bits."""
    labels = np.fromiter([entry.category_id for entry in entries], np.int32, len(entries))
    paths = [entry.fpath for entry in entries]
    text = ''.join(paths)
    num_bytes = map(len, paths) if text.isascii() else (len(path.encode()) for path in paths)
    lengths = np.fromiter(num_bytes, np.int32, len(paths))
    weights = None
    if entries and isinstance(entries[0], WeightedEntry):
        weights = np.fromiter((entry.weight for entry in entries), np.float32, len(entries))  # type: ignore[attr-defined]
    return EntryColumns.of(text.encode(), lengths, labels, weights)


def _parse_uniform(block: bytes) -> EntryColumns | None:
    """Parse a block whose entries differ in label and path only, as programs write them; else return None.

    This accepts a part of JSON's grammar, checked byte by byte, without an object per entry:
    OPENING digits MIDDLE path CLOSING comma, OPENING digits ..., with the constant pieces of the first entry.
    """
    first = _ENTRY.match(block)
    if not first or b'\\' in block:
        return None
    opening, middle, closing, comma = first.groups(default=b'')
    characters = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(characters == _QUOTE)
    if len(quotes) % _QUOTES_PER_ENTRY:
        return None
    before, after = (quotes[number::_QUOTES_PER_ENTRY].copy() for number in (4, 5))  # the quotes around the paths
    between = closing + comma + opening
    digits_end = before + 1 - len(middle)
    digits = np.concatenate([[first.end(1)], after[:-1] + len(between)])
    num_controls = _num_controls(between) * len(before) - _num_controls(comma)
    num_controls += _num_controls(middle) * len(before) + _num_controls(block[: first.start(1)])
    if (
        block[after[-1] :] != closing
        or not _occurs_at(between, block, after[:-1])
        or not _occurs_at(middle, block, digits_end)
        or np.count_nonzero(characters < 32) != num_controls  # none in a path
        or not (block.isascii() or _is_utf8(block))
    ):
        return None
    labels = _parse_numbers(block, digits_end, digits_end - digits)
    if labels is None:
        return None
    # Arrow copies every second one of the texts between these offsets.
    offsets = np.stack([before + 1, after], 1).astype(np.int32).ravel()
    spans = pa.Array.from_buffers(pa.string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(block)])
    paths = spans.take(pa.array(np.arange(0, len(spans), 2, dtype=np.int32)))
    return EntryColumns.of(memoryview(paths.buffers()[2]), (after - before - 1).astype(np.int32), labels)


def _num_controls(piece: bytes) -> int:
    return sum(character < 32 for character in piece)


def _occurs_at(piece: bytes, block: bytes, positions: np.ndarray) -> bool:
    """Return True if `piece`, of at least 8 bytes, occurs at each of the positions."""
    words = _words(block)
    if len(positions) and not (positions[0] >= 0 and positions[-1] + len(piece) <= len(block)):
        return False
    for start in {*range(0, len(piece) - 8, 8), len(piece) - 8}:
        expected = int.from_bytes(piece[start : start + 8], 'little')
        if not (words[positions + start] == np.uint64(expected)).all():
            return False
    return True


def _words(data: bytes | bytearray) -> np.ndarray:
    """Return the 8 bytes from each byte of `data` on as one number."""
    return np.ndarray(max(0, len(data) - 7), '<u8', data, strides=(1,))


def _parse_numbers(block: bytes, ends: np.ndarray, lengths: np.ndarray) -> np.ndarray | None:
    """Return the numbers that end before `ends`, or None unless all have 1 to 8 digits and no leading zero.

    All digits of a number are converted at once: the 8 bytes before its end, with those before its start replaced by
    zeros, are added up in pairs, then in fours, then in eights.
    """
    if lengths.min() < 1 or lengths.max() > _MAX_DIGITS:
        return None
    outside = _MASKS[_MAX_DIGITS - lengths]
    word = (_words(block)[ends - _MAX_DIGITS] & ~outside) | (_ZEROS & outside)
    tens = np.uint64(0xF0F0F0F0F0F0F0F0)
    if ((word & tens) != _ZEROS).any() or (((word + np.uint64(0x0606060606060606)) & tens) != _ZEROS).any():
        return None
    digits = word - _ZEROS
    if (((digits & ~outside & (outside + np.uint64(1)) * np.uint64(255)) == 0) & (lengths > 1)).any():
        return None  # a leading zero
    pairs = (digits * np.uint64(10) + (digits >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    fours = (pairs * np.uint64(100) + (pairs >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    eights = (fours * np.uint64(10_000) + (fours >> np.uint64(32))) & np.uint64(0xFFFFFFFF)
    return eights.astype(np.int32)


def _is_utf8(block: bytes) -> bool:
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def fingerprints(text: bytes | memoryview, lengths: np.ndarray) -> np.ndarray:
    """Return (num_texts,) uint64: equal for equal texts, different for others with probability 1 - 2^-64.

    Args:
        text: the bytes of all texts, concatenated.
        lengths: (num_texts,) bytes of each.
    """
    words, hashes = _words(b''.join((text, bytes(8)))), np.empty(len(lengths), np.uint64)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    for first in range(0, len(hashes), _CHUNK_ROWS):
        chunk = slice(first, first + _CHUNK_ROWS)
        hashes[chunk] = _hash(words, starts[chunk], lengths[chunk].astype(np.int64))
    return hashes


def _hash(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    hashes = lengths.astype(np.uint64) * _PRIMES[1]
    shortest, longest = int(lengths.min()), int(lengths.max())
    for offset in range(0, longest, 8):
        if offset + 8 <= shortest:
            word = words[starts + offset]
        else:
            word = _words_before_end(words, starts + offset, lengths - offset)
        hashes = (hashes ^ word) * _PRIMES[0]
        hashes ^= hashes >> np.uint64(29)
    return hashes * _PRIMES[1]


def _words_before_end(words: np.ndarray, positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the words at `positions` with the bytes from `lengths` on set to 0."""
    return words[np.minimum(positions, len(words) - 1)] & _MASKS[np.clip(lengths, 0, 8)]


def has_duplicates(numbers: np.ndarray) -> bool:
    """Return True if one of the uint64 numbers occurs twice, in a third of the time that sorting takes.

    Each number writes its row into a slot of a hash table; the numbers whose slots were overwritten enter the next
    round with another hash. Equal numbers share their slot in every round until only one of them is left there.
    """
    while len(numbers):
        rows = np.arange(len(numbers), dtype=np.int32 if len(numbers) < 2**31 else np.int64)
        size_bits = max(10, len(numbers).bit_length() + 1)
        slots = (numbers >> np.uint64(64 - size_bits)).astype(np.int64)
        table = np.empty(1 << size_bits, rows.dtype)
        table[slots] = rows
        winners = table[slots]
        overwritten = np.flatnonzero(winners != rows)
        remaining = numbers[overwritten]
        if (remaining == numbers[winners[overwritten]]).any():
            return True
        numbers = (remaining ^ (remaining >> np.uint64(31))) * _PRIMES[1]  # one to one, so different stays different
    return False
