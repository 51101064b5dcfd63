from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from lib.audit.hashing import close_pairs, gray_cells, perceptual_hash


def by_all_pairs(hashes: np.ndarray, distance: int) -> set[tuple[int, int]]:
    """Compare every pair, bit by bit (the oracle)."""
    values = [int(value) for value in hashes]
    return {
        (a, b)
        for a in range(len(values))
        for b in range(a + 1, len(values))
        if (values[a] ^ values[b]).bit_count() <= distance
    }


def as_set(pairs: np.ndarray) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in pairs}


@pytest.mark.parametrize('distance', range(9))
@pytest.mark.parametrize('seed', range(2))
def test_finds_all_close_pairs(distance, seed):
    print('seed', seed)
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**64, 400, dtype=np.uint64)
    hashes[200:] = hashes[:200]
    for copy in range(200, 400):
        for bit in random.choice(64, random.integers(0, 10), replace=False):
            hashes[copy] ^= np.uint64(1 << int(bit))
    expected = by_all_pairs(hashes, distance)
    assert len(expected) > 20
    assert as_set(close_pairs(hashes, distance)) == expected


def test_many_equal_hashes_give_few_pairs_and_stay_connected():
    hashes = np.full(20_000, 12345, np.uint64)
    pairs = close_pairs(hashes, 5)
    assert len(pairs) <= 8 * len(hashes)
    assert set(zip(range(19_999), range(1, 20_000), strict=True)) <= as_set(pairs)


@pytest.mark.long
def test_many_similar_hashes_give_few_pairs():
    random = np.random.default_rng(0)
    bits = random.integers(0, 64, (6000, 3)).astype(np.uint64)
    hashes = np.bitwise_xor.reduce(np.uint64(1) << bits, axis=1)
    pairs = close_pairs(hashes, 5)
    assert 0 < len(pairs) <= 8 * len(hashes) * (1 + 56)
    distances = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
    assert distances.max() <= 5


@pytest.mark.parametrize('count', [0, 1, 2])
def test_few_hashes(count):
    assert len(close_pairs(np.zeros(count, np.uint64), 5)) == (1 if count == 2 else 0)


def test_pairs_have_the_smaller_row_first_and_are_unique():
    pairs = close_pairs(np.array([7, 6, 7, 7, 1 << 40], np.uint64), 2)
    assert pairs.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]


def test_hash_bits_are_increases_from_cell_to_cell():
    """The oracle averages 288 x 288 pixels: each of the 9 x 8 cells consists of whole pixels."""
    random = np.random.default_rng(5)
    gray = random.integers(0, 256, (32, 32), dtype=np.uint8)
    large = np.kron(gray.astype(float), np.ones((9, 9)))
    cells = large.reshape(8, 36, 9, 32).mean(axis=(1, 3))
    bits = ''.join(str(int(right - left > 2)) for row in cells for left, right in pairwise(row))
    found = int(perceptual_hash(gray[None])[0])
    assert int.from_bytes(found.to_bytes(8, 'little'), 'big') == int(bits, 2)


def test_flat_images_with_noise_have_no_bits():
    noise = np.random.default_rng(0).integers(249, 252, (5, 32, 32), dtype=np.uint8)
    assert perceptual_hash(noise).tolist() == [0] * 5


def test_cells_are_means():
    gray = np.random.default_rng(1).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    shrunk = [np.asarray(Image.fromarray(image).reduce(2)) for image in gray]
    assert np.abs(gray_cells(gray).astype(int) - np.stack(shrunk)).max() <= 1
