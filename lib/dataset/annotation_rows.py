"""Entries of a block of annotations as columns: by their quotes where all are written alike, else by msgspec.

What is wrong with an annotation file, in one line: the slow way, taken once the fast one has given up.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from lib.errors import UserError

SHOWN = 10
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
FORM = '{"annotations": [{"category_id": 0, "fpath": "..."}, ...], "num_classes": 3}'
_MAX_CLASSES = 2**31 - 1  # labels are int32


def parse(path: str | Path, data: bytes) -> Any:
    """Decode any JSON. Raises UserError when it is none."""
    try:
        return msgspec.json.decode(data)
    except NOT_JSON as error:
        raise UserError(f'{path}: not valid JSON ({error}; {len(data)} bytes)') from None


def faults_of(path: str | Path, tree: Any) -> str:
    """Say what is wrong with a parsed file that the typed reader refused."""
    if not isinstance(tree, dict) or not isinstance(tree.get('annotations'), list):
        return f'{path}: must be {FORM}'
    num_classes = tree.get('num_classes')
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        return f'{path}: num_classes is {num_classes!r}, but must be a whole number, at least 1'
    if num_classes > _MAX_CLASSES:
        return f'{path}: num_classes is {num_classes}, but must be at most {_MAX_CLASSES}'
    if not tree['annotations']:
        return f'{path}: lists no images'
    return fault_line(path, list(entry_faults(tree['annotations'], num_classes, 'fpath')))


def entry_faults(entries: list, num_classes: int | None, name: str) -> Iterator[str]:
    """Yield one phrase for each faulty entry; `num_classes` None means that labels are not looked at."""
    for position, entry in enumerate(entries):
        where = f'entry {position}'
        if not isinstance(entry, dict):
            yield f'{where} is {_short(entry)}, not an object'
            continue
        text, label = entry.get(name), entry.get('category_id')
        if not isinstance(text, str) or not text:
            yield (f'{where} has no {name}' if text is None else f'{where}: {name} is {_short(text)}, not a path')
        elif num_classes is None:
            continue
        elif isinstance(label, bool) or not isinstance(label, int):
            yield f'{where}: category_id is {_short(label)}, not a whole number'
        elif not 0 <= label < num_classes:
            yield f'{where}: category_id is {label}, but must be from 0 to {num_classes - 1}'


def fault_line(path: str | Path, faults: list[str]) -> str:
    """Return the first faults, and how many there are."""
    shown = '; '.join(faults[:SHOWN])
    more = f'; and {len(faults) - SHOWN} more' if len(faults) > SHOWN else ''
    return f'{path}: {shown}{more} ({len(faults)} faulty in all)'


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + '...'


_QUOTE = ord('"')
_ENTRY = re.compile(
    rb' (\{ "category_id" : )[0-9]{1,8}( , "fpath" : ")[^"]*(" \})(?:( , )\{|\Z)'.replace(b' ', rb'[ \t\r\n]*')
)
_QUOTES_AN_ENTRY, _MAX_DIGITS = 6, 8
_ROWS = 1 << 16  # fingerprints worked out at a time, so that they stay in the processor's cache
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
_ZEROS = np.uint64(0x3030303030303030)
_PRIMES = np.array([0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F], np.uint64)


class Entry(msgspec.Struct, gc=False):
    """What is read of an entry; other fields are ignored."""

    fpath: str
    category_id: int


class Rows(NamedTuple):
    """Some entries.

    Attributes:
        text: the UTF-8 bytes of their paths, one behind the other.
        lengths: (num_entries,) bytes of each path.
        labels: (num_entries,) int32.
        prints: (num_entries,) uint64, a fingerprint of each path.
    """

    text: bytes | memoryview
    lengths: np.ndarray
    labels: np.ndarray
    prints: np.ndarray

    @classmethod
    def of(cls, text: bytes | memoryview, lengths: np.ndarray, labels: np.ndarray) -> 'Rows':
        return cls(text, lengths, labels, fingerprints(text, lengths))


_decode = msgspec.json.Decoder(list[Entry]).decode


def read_rows(block: bytes) -> Rows:
    """Read entries, from the brace that opens the first to the one that closes the last.

    Raises:
        msgspec.DecodeError: this is no list of entries.
        OverflowError: a label beyond 32 bits.
    """
    return _read_alike(block) or rows_of(_decode(b'[' + block + b']'))


def rows_of(entries: list[Entry]) -> Rows:
    """Return entries as columns."""
    paths = [entry.fpath for entry in entries]
    labels = np.fromiter([entry.category_id for entry in entries], np.int32, len(entries))
    text = ''.join(paths)
    if not text.isascii():
        paths = [path.encode() for path in paths]
    lengths = np.fromiter(map(len, paths), np.int32, len(paths))
    return Rows.of(text.encode(), lengths, labels)


def _read_alike(block: bytes) -> Rows | None:
    """Read a block whose entries differ in nothing but label and path, as every program writes them; else None.

    What is read here is a part of JSON's grammar, checked byte by byte, only without an object an entry:
    OPEN digits MIDDLE path CLOSE comma, OPEN digits ..., each of the constant pieces as in the first entry.
    """
    first = _ENTRY.match(block)
    if not first or b'\\' in block:
        return None
    opening, middle, closing, comma = first.groups(default=b'')
    letters = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(letters == _QUOTE)
    if len(quotes) % _QUOTES_AN_ENTRY:
        return None
    before, after = (quotes[place::_QUOTES_AN_ENTRY].copy() for place in (4, 5))  # those around the paths
    between = closing + comma + opening
    digits_end = before + 1 - len(middle)
    digits = np.concatenate([[first.end(1)], after[:-1] + len(between)])
    num_controls = sum(letter < 32 for letter in between) * len(before) - sum(letter < 32 for letter in comma)
    num_controls += sum(letter < 32 for letter in middle) * len(before)
    num_controls += sum(letter < 32 for letter in block[: first.start(1)])
    if (
        block[after[-1] :] != closing
        or not _stands(between, block, after[:-1])
        or not _stands(middle, block, digits_end)
        or np.count_nonzero(letters < 32) != num_controls  # none in a path
        or not (block.isascii() or _is_utf8(block))
    ):
        return None
    labels = _numbers(block, digits_end, digits_end - digits)
    if labels is None:
        return None
    # Arrow copies every second one of the texts between these offsets.
    offsets = np.stack([before + 1, after], 1).astype(np.int32).ravel()
    spans = pa.Array.from_buffers(pa.string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(block)])
    paths = spans.take(pa.array(np.arange(0, len(spans), 2, dtype=np.int32)))
    return Rows.of(memoryview(paths.buffers()[2]), (after - before - 1).astype(np.int32), labels)


def _stands(piece: bytes, block: bytes, places: np.ndarray) -> bool:
    """Whether `piece`, of at least 8 bytes, stands at each of the places."""
    words = _words(block)
    if len(places) and not (places[0] >= 0 and places[-1] + len(piece) <= len(block)):
        return False
    for start in {*range(0, len(piece) - 8, 8), len(piece) - 8}:
        expected = int.from_bytes(piece[start : start + 8], 'little')
        if not (words[places + start] == np.uint64(expected)).all():
            return False
    return True


def _words(data: bytes | bytearray) -> np.ndarray:
    """Return the 8 bytes from each byte of `data` on as one number."""
    return np.ndarray(max(0, len(data) - 7), '<u8', data, strides=(1,))


def _numbers(block: bytes, ends: np.ndarray, lengths: np.ndarray) -> np.ndarray | None:
    """Return the numbers that end before `ends`, or None when one is not of 1 to 8 digits as JSON has it.

    All digits of a number at once: the 8 bytes before its end, those before its start made zeros, are added up in
    pairs, then in fours, then in eights.
    """
    if lengths.min() < 1 or lengths.max() > _MAX_DIGITS:
        return None
    foreign = _MASKS[_MAX_DIGITS - lengths]
    word = (_words(block)[ends - _MAX_DIGITS] & ~foreign) | (_ZEROS & foreign)
    tens = np.uint64(0xF0F0F0F0F0F0F0F0)
    if ((word & tens) != _ZEROS).any() or (((word + np.uint64(0x0606060606060606)) & tens) != _ZEROS).any():
        return None
    digits = word - _ZEROS
    if (((digits & ~foreign & (foreign + np.uint64(1)) * np.uint64(255)) == 0) & (lengths > 1)).any():
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


def _ends(words: np.ndarray, places: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the words at `places` without the bytes from `lengths` on."""
    return words[np.minimum(places, len(words) - 1)] & _MASKS[np.clip(lengths, 0, 8)]


def fingerprints(text: bytes | memoryview, lengths: np.ndarray) -> np.ndarray:
    """Return (num_texts,) uint64: equal for equal texts, different for others but for one chance in 2^64.

    Args:
        text: bytes of all texts, one behind the other.
        lengths: (num_texts,) of each, bytes.
    """
    words, found = _words(b''.join((text, bytes(8)))), np.empty(len(lengths), np.uint64)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    for first in range(0, len(found), _ROWS):
        part = slice(first, first + _ROWS)
        found[part] = _mixed(words, starts[part], lengths[part].astype(np.int64))
    return found


def _mixed(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    mixed = lengths.astype(np.uint64) * _PRIMES[1]
    shortest, longest = int(lengths.min()), int(lengths.max())
    for place in range(0, longest, 8):
        word = words[starts + place] if place + 8 <= shortest else _ends(words, starts + place, lengths - place)
        mixed = (mixed ^ word) * _PRIMES[0]
        mixed ^= mixed >> np.uint64(29)
    return mixed * _PRIMES[1]


def has_equals(numbers: np.ndarray) -> bool:
    """Whether one of the uint64 comes twice: told in a third of the time that sorting takes.

    Each number writes its row into a slot of a table that its bits choose; only those that were overwritten go into
    the next round, with other bits. Equal ones share their slot in every round, so at last one finds the other there.
    """
    while len(numbers):
        rows = np.arange(len(numbers), dtype=np.int32 if len(numbers) < 2**31 else np.int64)
        size_bits = max(10, len(numbers).bit_length() + 1)
        slots = (numbers >> np.uint64(64 - size_bits)).astype(np.int64)
        table = np.empty(1 << size_bits, rows.dtype)
        table[slots] = rows
        winners = table[slots]
        lost = np.flatnonzero(winners != rows)
        losers = numbers[lost]
        if (losers == numbers[winners[lost]]).any():
            return True
        numbers = (losers ^ (losers >> np.uint64(31))) * _PRIMES[1]  # one to one, so different stays different
    return False
