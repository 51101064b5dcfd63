"""Sets of rows that belong together, without a loop over rows."""

import numpy as np


def components(pairs: np.ndarray, num_rows: int) -> np.ndarray:
    """Return (num_rows,) int64: for each row the smallest row that a chain of pairs joins it to; itself if none.

    Args:
        pairs: (m, 2) rows.
    """
    root = np.arange(num_rows)
    first, second = pairs[:, 0], pairs[:, 1]
    while True:
        a, b = root[first], root[second]
        apart = a != b
        if not apart.any():
            return root
        # The larger root is hung below the smaller one; then every row points straight to its root.
        np.minimum.at(root, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while (root[root] != root).any():
            root = root[root]
        first, second = first[apart], second[apart]


def first_equal(values: np.ndarray) -> np.ndarray:
    """Return (n,) int64: for each value the place of the first equal one."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def members(root: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each set of at least two, both in rising order. `root` is as from `components`."""
    shared = np.flatnonzero(np.bincount(root, minlength=len(root))[root] > 1)
    order = shared[np.argsort(root[shared], kind='stable')]
    cuts = np.flatnonzero(np.diff(root[order])) + 1
    return np.split(order, cuts) if len(order) else []


def spread(keys: np.ndarray, values: np.ndarray, num_keys: int) -> np.ndarray:
    """Return (num_keys,) bool: whether rows of one key (below num_keys) have different values. No value is below 0."""
    lowest = np.full(num_keys, np.iinfo(np.int64).max)
    highest = np.full(num_keys, -1, np.int64)
    np.minimum.at(lowest, keys, values)
    np.maximum.at(highest, keys, values)
    return highest > lowest
