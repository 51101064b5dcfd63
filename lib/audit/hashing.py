"""Perceptual hashes, and the pairs of close ones in time linear in their number."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

BITS = 64
_STEP = 2.0  # grey levels: below it two neighbours are level, or noise would decide on flat backgrounds
_BLOCKS_A_KEY = 3
_NEIGHBOURS = 8  # compared in each table: more would make crowds of equal keys quadratic
_OF_EQUAL = 4  # rows of one hash that meet those of other hashes


def grey_cells(greys: np.ndarray) -> np.ndarray:
    """Return (n, 16, 16) uint8, the means of 2 x 2 pixels of (n, 32, 32) pictures."""
    sums = greys.reshape(len(greys), 16, 2, 16, 2).sum(axis=(2, 4), dtype=np.uint16)
    return (sums >> 2).astype(np.uint8)


def perceptual_hash(greys: np.ndarray) -> np.ndarray:
    """Return (n,) uint64: whether each of 8 rows of 9 cells brightens from cell to cell ("difference hash").

    On real photos it parts re-encoded, resized, brightened and stamped copies (at most 6 bits) from other photos better
    than the cosine transform's hash, which a stamp in a corner changes in 12 bits or more.

    Args:
        greys: (n, 32, 32) uint8.
    """
    rows = greys.reshape(len(greys), 8, 4, 32).mean(axis=2, dtype=np.float32)
    cells = rows @ _nine_of(32)
    brighter = np.diff(cells, axis=2) > _STEP
    return np.packbits(brighter.reshape(len(greys), BITS), axis=1).view(np.uint64).reshape(len(greys))


def _nine_of(size: int) -> np.ndarray:
    """Return (size, 9) float32: the weights that average a row of `size` pixels to 9 cells."""
    edges = np.linspace(0, size, 10)
    left, right = np.arange(size)[:, None], np.arange(size)[:, None] + 1
    overlap = np.clip(np.minimum(edges[1:], right) - np.maximum(edges[:-1], left), 0, None)
    return (overlap / overlap.sum(axis=0)).astype(np.float32)


def close_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Return (m, 2) int64: pairs of places, the smaller first, whose hashes differ in at most `distance` bits.

    Multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012; blocks combined as by Manku, Jain and Das Sarma, WWW
    2007): of distance + 3 blocks of bits at least 3 are free of errors, so a close pair agrees in one of the tables
    that have 3 blocks as their key. Each table is one sort, and each row meets the next 8 of its key: never
    all pairs. Where more than 9 rows have one key, pairs may be missing; groups that are joined by the others stay
    whole.
    """
    order = np.argsort(hashes, kind='stable')
    found = [_equal_pairs(hashes, order)]
    if distance > 0:
        in_group = _place_in_group(hashes[order])
        some = order[in_group < _OF_EQUAL]
        for table in _tables(hashes[some], distance + _BLOCKS_A_KEY):
            found.append(some[_pairs_of_a_table(hashes[some], table, distance)])
    pairs = np.concatenate(found)
    codes = np.unique(pairs.min(axis=1) * len(hashes) + pairs.max(axis=1))
    return np.stack(np.divmod(codes, max(len(hashes), 1)), axis=1)


def _equal_pairs(hashes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return pairs of rows of one hash: each with the next few."""
    ordered = hashes[order]
    found = []
    for step in range(1, _NEIGHBOURS + 1):
        first = np.flatnonzero(ordered[step:] == ordered[:-step])
        found.append(np.stack([order[first], order[first + step]], axis=1))
        if not len(first):
            break
    return np.concatenate(found)


def _place_in_group(ordered: np.ndarray) -> np.ndarray:
    """Return for each element of a sorted array how many equal ones stand before it."""
    changes = np.ones(len(ordered), bool)
    changes[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(changes)
    sizes = np.diff(np.append(starts, len(ordered)))
    return np.arange(len(ordered)) - np.repeat(starts, sizes)


def _tables(hashes: np.ndarray, num_blocks: int) -> Iterator[np.ndarray]:
    """Yield (n,) uint64 in rising order for each choice of blocks: their bits, and below them the place of the hash.

    A block takes bits from all over, since neighbours are alike and would make keys that many share. Key and place
    in one number are sorted twice as fast as a key with its order, and every machine breaks ties alike.
    """
    bits = [range(block, BITS, num_blocks) for block in range(num_blocks)]
    blocks = [_gathered(hashes, of_block) for of_block in bits]
    places = np.arange(len(hashes), dtype=np.uint64)
    room = BITS - _place_bits(len(hashes))
    for chosen in combinations(range(num_blocks), _BLOCKS_A_KEY):
        key, length = np.zeros(len(hashes), np.uint64), 0
        for block in chosen:
            key = key << np.uint64(len(bits[block])) | blocks[block]
            length += len(bits[block])
        key >>= np.uint64(max(length - room, 0))
        yield np.sort(key << np.uint64(BITS - room) | places)


def _gathered(hashes: np.ndarray, bits: range) -> np.ndarray:
    """Return (n,) uint16: these bits of each hash, side by side."""
    found = np.zeros(len(hashes), np.uint16)
    for place, bit in enumerate(bits):
        found |= (hashes >> np.uint64(bit) & np.uint64(1)).astype(np.uint16) << np.uint16(place)
    return found


def _place_bits(count: int) -> int:
    return max(count.bit_length(), 1)


def _pairs_of_a_table(hashes: np.ndarray, table: np.ndarray, distance: int) -> np.ndarray:
    shift = np.uint64(_place_bits(len(hashes)))
    keys, places = table >> shift, (table & ((np.uint64(1) << shift) - np.uint64(1))).astype(np.int64)
    found = [np.zeros((0, 2), np.int64)]
    first = np.arange(len(table))
    for step in range(1, _NEIGHBOURS + 1):
        # Where the next but one has the key, the next has it: each step looks at what the last one left.
        first = first[: np.searchsorted(first, len(table) - step)]
        first = first[keys[first] == keys[first + step]]
        pairs = np.stack([places[first], places[first + step]], axis=1)
        found.append(pairs[np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]) <= distance])
    return np.concatenate(found)
