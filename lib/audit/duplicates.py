"""Which images are one picture (exact), and which are nearly so.

Are two small pictures one photo, but for its encoding, size, brightness, or a stamp on it?
Sets of rows that belong together, without a loop over rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lib.audit.hashing import close_pairs
from lib.audit.scan import Closer, Gallery, Scan, scan_closer

_BACKGROUND = 12.0  # grey levels around the commonest value that are background
_AGREEING = 0.8  # share of the content that must agree; the rest may be stamped over
_FEWEST_CELLS = 0.04  # share of the picture that must be content: an empty one tells nothing
_GAIN = (0.7, 1.4)  # of the contrast
_ROUNDS = 3


def differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (n,) float32: how far the pictures of each pair differ, relative to their contrast; infinite where
    there is too little in them to tell.

    The second picture is taken as gain * first + offset, fitted by least squares on the agreeing 80 % of the content
    (found in three rounds); the result is the largest residual among those, over the standard deviation of the picture.
    Content is what differs from the background of either picture: two products before white share most of their cells.

    Args:
        first, second: (n, cells, channels) uint8, cells of the same places.
    """
    shape = (len(first), -1)
    content = _content(first) | _content(second)  # (n, cells)
    enough = content.mean(axis=1) >= _FEWEST_CELLS
    mask = np.repeat(content[:, :, None], first.shape[2], axis=2).reshape(shape)
    a, b = first.reshape(shape).astype(np.float32), second.reshape(shape).astype(np.float32)
    contrast = np.maximum(np.minimum(a.std(axis=1), b.std(axis=1)), 1.0)
    kept = mask
    for _ in range(_ROUNDS):
        residuals = _residuals(a, b, kept)
        residuals[~mask] = np.inf
        limit = _quantile_of_content(residuals, mask.sum(axis=1))
        kept = residuals <= limit[:, None]
    # Rounding to whole grey levels alone is no difference.
    return np.where(enough, np.maximum(limit - 1.0, 0.0) / contrast, np.inf).astype(np.float32)


def _content(pictures: np.ndarray) -> np.ndarray:
    """Return (n, cells) bool: cells in which some channel differs from the picture's median colour."""
    values = pictures.astype(np.float32)
    background = np.median(values, axis=1, keepdims=True)
    return (np.abs(values - background) > _BACKGROUND).any(axis=2)


def _residuals(a: np.ndarray, b: np.ndarray, kept: np.ndarray) -> np.ndarray:
    weights = kept.astype(np.float32)
    count = np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    mean_a, mean_b = ((weights * x).sum(axis=1, keepdims=True) / count for x in (a, b))
    variance = (weights * (a - mean_a) ** 2).sum(axis=1, keepdims=True)
    covariance = (weights * (a - mean_a) * (b - mean_b)).sum(axis=1, keepdims=True)
    gain = np.clip(covariance / np.maximum(variance, 1e-6), *_GAIN)
    return np.abs((b - mean_b) - gain * (a - mean_a))


def _quantile_of_content(residuals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return (n,): the value that the agreeing share of the content does not exceed; other cells are infinite."""
    place = np.maximum(np.ceil(_AGREEING * counts).astype(int) - 1, 0)
    limit = np.sort(residuals, axis=1)[np.arange(len(residuals)), place]
    return np.where(np.isfinite(limit), limit, 0.0)


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


# Measured on real photos: copies (of quality 30, half and a third of the size, brighter, darker, stamped) stay below
# 0.03 in grey and 0.09 in colour; the most alike of different photos of one product begin at 0.16 in colour.
_GREY_LIMIT, _COLOUR_LIMIT = 0.2, 0.13
_ONE_COLOUR = 6  # grey levels between the darkest and the brightest cell
_ROWS_AT_ONCE = 20_000  # of the second look, each 3 kB
_PAIRS_AT_ONCE = 1_024  # 12 kB each as float32, several times over

Look = Callable[[np.ndarray], Closer]


@dataclass(frozen=True)
class Duplicates:
    """What is there more than once.

    Attributes:
        picture: (num_images,) int64: the first row with exactly the same pixels; its own where there is none.
        near: (m, 2) int64: pairs of such first rows that are nearly the same picture.
        one_colour: rows of pictures without content, in rising order; they are compared with nothing.
    """

    picture: np.ndarray
    near: np.ndarray
    one_colour: np.ndarray

    @property
    def family(self) -> np.ndarray:
        """(num_images,) int64: the first row that exact or near likeness joins each row to."""
        return components(self.near, len(self.picture))[self.picture]


def find_duplicates(scan: Scan, look_closer: Look, distance: int) -> Duplicates:
    """Find them in time linear in the number of images.

    Args:
        scan: the first look, in grey.
        look_closer: rows in rising order -> a second look at them, in colour; asked only where grey leaves a doubt.
        distance: bits in which perceptual hashes of near duplicates may differ; 0 takes equal hashes alone.
    """
    one_colour = _one_colour(scan, look_closer)
    picture = _exact(scan, look_closer)
    taking_part = scan.readable & (picture == np.arange(len(picture)))
    taking_part[one_colour] = False
    rows = np.flatnonzero(taking_part)
    pairs = rows[close_pairs(scan.seen['hash'][rows], distance)]
    cells = scan.seen['cells'][:, :, None]
    pairs = pairs[_alike(pairs, cells, cells, _GREY_LIMIT)]
    near = [np.zeros((0, 2), np.int64)]
    for some in _batches(pairs, len(picture)):
        closer = look_closer(np.unique(some))
        pictures = closer.pictures.reshape(len(closer.rows), -1, 3)
        places = closer.places(some)
        near.append(some[_alike(places, pictures, pictures, _COLOUR_LIMIT)])
    return Duplicates(picture, np.concatenate(near), one_colour)


def look_closer_at(gallery: Gallery, num_workers: int) -> Look:
    """Return the second look at a gallery."""
    return lambda rows: scan_closer(gallery, rows, num_workers=num_workers)


def _one_colour(scan: Scan, look_closer: Look) -> np.ndarray:
    """Return the rows without contrast, in grey and in colour."""
    rows = np.flatnonzero(scan.readable & (scan.seen['contrast'] <= _ONE_COLOUR))
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        closer = look_closer(rows[start : start + _ROWS_AT_ONCE])
        pictures = closer.pictures.reshape(len(closer.rows), -1, 3)
        flat = (pictures.max(axis=1) - pictures.min(axis=1)).max(axis=1) <= _ONE_COLOUR
        found.append(closer.rows[flat])
    return np.concatenate(found)


def _exact(scan: Scan, look_closer: Look) -> np.ndarray:
    """Return the first row with the same pixels, for each row. Equal in grey is asked again in colour."""
    picture = np.arange(len(scan.seen))
    rows = np.flatnonzero(scan.readable)
    picture[rows] = rows[first_equal(scan.seen['digest'][rows])]
    groups = members(picture)
    for some in _filled([(group, group) for group in groups]):
        closer = look_closer(np.sort(some))
        # Rows that were equal in grey lie in one batch, so their first one does as well.
        picture[closer.rows] = closer.rows[first_equal(closer.digests)]
    return picture


def _batches(pairs: np.ndarray, num_rows: int) -> Iterator[np.ndarray]:
    """Yield the pairs in batches of not too many rows, so that each row is looked at once."""
    root = components(pairs, num_rows)
    of_pair = root[pairs[:, 0]] if len(pairs) else np.zeros(0, np.int64)
    order = np.argsort(of_pair, kind='stable')
    cuts = np.flatnonzero(np.diff(of_pair[order])) + 1
    groups = np.split(pairs[order], cuts) if len(pairs) else []
    yield from _filled([(group, np.unique(group)) for group in groups])


def _filled(groups: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
    """Yield groups (their content, their rows) joined until a batch is full."""
    batch: list[np.ndarray] = []
    num_rows = 0
    for content, rows in groups:
        if batch and num_rows + len(rows) > _ROWS_AT_ONCE:
            yield np.concatenate(batch)
            batch, num_rows = [], 0
        batch.append(content)
        num_rows += len(rows)
    if batch:
        yield np.concatenate(batch)


def _alike(pairs: np.ndarray, first: np.ndarray, second: np.ndarray, limit: float) -> np.ndarray:
    """Return (m,) bool: whether the pictures of each pair differ by no more than `limit`."""
    found = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        some = pairs[start : start + _PAIRS_AT_ONCE]
        found[start : start + len(some)] = differences(first[some[:, 0]], second[some[:, 1]]) <= limit
    return found
