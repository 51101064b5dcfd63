"""Perceptual hashes, and the pairs of close ones in time linear in the number of hashes."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

BITS = 64
_STEP = 2.0  # gray levels: smaller differences of two neighbors are ignored, or noise would set bits in flat regions
_BLOCKS_PER_KEY = 3
_NEIGHBORS = 8  # compared in each table: more would make many equal keys quadratic
_MAX_EQUAL = 4  # rows of one hash that are compared with those of other hashes


def gray_cells(grays: np.ndarray) -> np.ndarray:
    """Return (n, 16, 16) uint8, the means of 2 x 2 pixels of (n, 32, 32) images."""
    sums = grays.reshape(len(grays), 16, 2, 16, 2).sum(axis=(2, 4), dtype=np.uint16)
    return (sums >> 2).astype(np.uint8)


def perceptual_hash(grays: np.ndarray) -> np.ndarray:
    """Return (n,) uint64 difference hashes: a bit is set if a cell is brighter than the one before (8 rows of 9 cells).

    On real photos it separates re-encoded, resized, brightened and stamped copies (at most 6 bits) from other photos
    better than a hash of the cosine transform, of which a stamp in a corner changes 12 bits or more.

    Args:
        grays: (n, 32, 32) uint8.
    """
    rows = grays.reshape(len(grays), 8, 4, 32).mean(axis=2, dtype=np.float32)
    cells = rows @ _averages_of_nine(32)
    brighter = np.diff(cells, axis=2) > _STEP
    return np.packbits(brighter.reshape(len(grays), BITS), axis=1).view(np.uint64).reshape(len(grays))


def _averages_of_nine(size: int) -> np.ndarray:
    """Return (size, 9) float32 weights that average a row of `size` pixels to 9 cells."""
    edges = np.linspace(0, size, 10)
    left, right = np.arange(size)[:, None], np.arange(size)[:, None] + 1
    overlap = np.clip(np.minimum(edges[1:], right) - np.maximum(edges[:-1], left), 0, None)
    return (overlap / overlap.sum(axis=0)).astype(np.float32)


def close_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Return (m, 2) int64: pairs of indices, the smaller first, whose hashes differ in at most `distance` bits.

    Multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012; blocks combined as by Manku, Jain and Das Sarma, WWW
    2007): of distance + 3 blocks of bits at least 3 are free of errors, so a close pair agrees in one of the tables
    that have 3 blocks as their key. Each table is one sort, and each row is compared with the next 8 rows of its key:
    never all pairs. If more than 9 rows have the same key, pairs may be missing, but their groups remain connected.
    """
    order = np.argsort(hashes, kind='stable')
    found = [_equal_pairs(hashes, order)]
    if distance > 0:
        in_group = _index_in_group(hashes[order])
        some = order[in_group < _MAX_EQUAL]
        for table in _tables(hashes[some], distance + _BLOCKS_PER_KEY):
            found.append(some[_pairs_of_table(hashes[some], table, distance)])
    pairs = np.concatenate(found)
    codes = np.unique(pairs.min(axis=1) * len(hashes) + pairs.max(axis=1))
    return np.stack(np.divmod(codes, max(len(hashes), 1)), axis=1)


def _equal_pairs(hashes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return pairs of rows with equal hashes: each row with the next few."""
    ordered = hashes[order]
    found = []
    for step in range(1, _NEIGHBORS + 1):
        first = np.flatnonzero(ordered[step:] == ordered[:-step])
        found.append(np.stack([order[first], order[first + step]], axis=1))
        if not len(first):
            break
    return np.concatenate(found)


def _index_in_group(ordered: np.ndarray) -> np.ndarray:
    """Return the number of equal elements before each element of a sorted array."""
    changes = np.ones(len(ordered), bool)
    changes[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(changes)
    sizes = np.diff(np.append(starts, len(ordered)))
    return np.arange(len(ordered)) - np.repeat(starts, sizes)


def _tables(hashes: np.ndarray, num_blocks: int) -> Iterator[np.ndarray]:
    """Yield (n,) uint64, ascending, per choice of blocks: the bits of the blocks, and below them the index of the hash.

    A block takes bits from the whole hash: neighboring bits are correlated and would give keys that many hashes have.
    Key and index in one number are sorted twice as fast as a key with its order, and ties are ordered the same way on
    every machine.
    """
    bits = [range(block, BITS, num_blocks) for block in range(num_blocks)]
    blocks = [_select_bits(hashes, of_block) for of_block in bits]
    indices = np.arange(len(hashes), dtype=np.uint64)
    key_bits = BITS - _index_bits(len(hashes))
    for chosen in combinations(range(num_blocks), _BLOCKS_PER_KEY):
        key, length = np.zeros(len(hashes), np.uint64), 0
        for block in chosen:
            key = key << np.uint64(len(bits[block])) | blocks[block]
            length += len(bits[block])
        key >>= np.uint64(max(length - key_bits, 0))
        yield np.sort(key << np.uint64(BITS - key_bits) | indices)


def _select_bits(hashes: np.ndarray, bits: range) -> np.ndarray:
    """Return (n,) uint16: these bits of each hash, packed."""
    packed = np.zeros(len(hashes), np.uint16)
    for position, bit in enumerate(bits):
        packed |= (hashes >> np.uint64(bit) & np.uint64(1)).astype(np.uint16) << np.uint16(position)
    return packed


def _index_bits(count: int) -> int:
    return max(count.bit_length(), 1)


def _pairs_of_table(hashes: np.ndarray, table: np.ndarray, distance: int) -> np.ndarray:
    shift = np.uint64(_index_bits(len(hashes)))
    keys, indices = table >> shift, (table & ((np.uint64(1) << shift) - np.uint64(1))).astype(np.int64)
    found = [np.zeros((0, 2), np.int64)]
    first = np.arange(len(table))
    for step in range(1, _NEIGHBORS + 1):
        # If the row `step` further has the same key, so have those between: each step filters the previous result.
        first = first[: np.searchsorted(first, len(table) - step)]
        first = first[keys[first] == keys[first + step]]
        pairs = np.stack([indices[first], indices[first + step]], axis=1)
        found.append(pairs[np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]) <= distance])
    return np.concatenate(found)
