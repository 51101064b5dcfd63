"""Exact and near duplicates of images, in time linear in the number of images.

Exact duplicates have the same pixels. Near duplicates are one photo in another encoding, size or brightness, or with a
stamp on it: candidates have close perceptual hashes and are compared in gray, then in color.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lib.audit.hashing import close_pairs
from lib.audit.scan import ColorScan, Scan

# Measured on real photos: copies (of quality 30, half and a third of the size, brighter, darker, stamped) stay below
# 0.03 in gray and 0.09 in color; the most similar of different photos of one product start at 0.16 in color.
_GRAY_LIMIT, _COLOR_LIMIT = 0.2, 0.13
_MAX_FLAT_RANGE = 6  # gray levels between the darkest and the brightest pixel of an image of a single color
_ROWS_PER_BATCH = 20_000  # of a color scan, 3 kB per row
_PAIRS_PER_BATCH = 1_024  # 12 kB per pair as float32, several times

_BACKGROUND = 12.0  # pixels within so many gray levels of the median are background
_AGREEING = 0.8  # fraction of the content that must agree; the rest may be covered by a stamp
_MIN_CONTENT = 0.04  # fraction of the image that must be content: an empty image is compared with nothing
_GAIN = (0.7, 1.4)  # range of contrast changes
_ROUNDS = 3

ColorScanner = Callable[[np.ndarray], ColorScan]


@dataclass(frozen=True)
class Duplicates:
    """Duplicates among all images.

    Attributes:
        first_copy: (num_images,) int64: the first row with the same pixels; the row itself if it is the first.
        near: (m, 2) int64: pairs of such first rows that are near duplicates.
        single_color: rows of images of a single color, ascending; they are not compared.
    """

    first_copy: np.ndarray
    near: np.ndarray
    single_color: np.ndarray

    @property
    def near_component(self) -> np.ndarray:
        """(num_images,) int64: the smallest row that exact and near duplicates connect each row to."""
        return components(self.near, len(self.first_copy))[self.first_copy]


def find_duplicates(scan: Scan, scan_colors: ColorScanner, distance: int) -> Duplicates:
    """Find exact and near duplicates.

    Args:
        scan: statistics of all images, in gray.
        scan_colors: ascending rows -> their scan in color; called only for rows that are similar in gray.
        distance: maximum number of bits in which perceptual hashes of near duplicates differ; 0: equal hashes only.
    """
    single_color = _single_color(scan, scan_colors)
    first_copy = _exact(scan, scan_colors)
    compared = scan.readable & (first_copy == np.arange(len(first_copy)))
    compared[single_color] = False
    rows = np.flatnonzero(compared)
    pairs = rows[close_pairs(scan.stats['hash'][rows], distance)]
    cells = scan.stats['cells'][:, :, None]
    pairs = pairs[_similar(pairs, cells, _GRAY_LIMIT)]
    near = [np.zeros((0, 2), np.int64)]
    for batch in _pair_batches(pairs, len(first_copy)):
        colors = scan_colors(np.unique(batch))
        thumbnails = colors.thumbnails.reshape(len(colors.rows), -1, 3)
        near.append(batch[_similar(colors.positions(batch), thumbnails, _COLOR_LIMIT)])
    return Duplicates(first_copy, np.concatenate(near), single_color)


def _single_color(scan: Scan, scan_colors: ColorScanner) -> np.ndarray:
    """Return the rows without contrast, in gray and in color."""
    rows = np.flatnonzero(scan.readable & (scan.stats['contrast'] <= _MAX_FLAT_RANGE))
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(rows), _ROWS_PER_BATCH):
        colors = scan_colors(rows[start : start + _ROWS_PER_BATCH])
        thumbnails = colors.thumbnails.reshape(len(colors.rows), -1, 3)
        flat = (thumbnails.max(axis=1) - thumbnails.min(axis=1)).max(axis=1) <= _MAX_FLAT_RANGE
        found.append(colors.rows[flat])
    return np.concatenate(found)


def _exact(scan: Scan, scan_colors: ColorScanner) -> np.ndarray:
    """Return the first row with the same pixels, for each row. Rows that are equal in gray are compared in color."""
    first_copy = np.arange(len(scan.stats))
    rows = np.flatnonzero(scan.readable)
    first_copy[rows] = rows[first_occurrence(scan.stats['digest'][rows])]
    groups = component_rows(first_copy)
    for batch in _join_groups([(group, group) for group in groups]):
        colors = scan_colors(np.sort(batch))
        # Rows that are equal in gray are in one batch, and so is the first of them.
        first_copy[colors.rows] = colors.rows[first_occurrence(colors.digests)]
    return first_copy


def _pair_batches(pairs: np.ndarray, num_rows: int) -> Iterator[np.ndarray]:
    """Yield the pairs in batches of limited numbers of rows, with each row in one batch only."""
    root = components(pairs, num_rows)
    of_pair = root[pairs[:, 0]] if len(pairs) else np.zeros(0, np.int64)
    order = np.argsort(of_pair, kind='stable')
    cuts = np.flatnonzero(np.diff(of_pair[order])) + 1
    groups = np.split(pairs[order], cuts) if len(pairs) else []
    yield from _join_groups([(group, np.unique(group)) for group in groups])


def _join_groups(groups: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
    """Yield groups (their content, their rows), joined until a batch has _ROWS_PER_BATCH rows."""
    batch: list[np.ndarray] = []
    num_rows = 0
    for content, rows in groups:
        if batch and num_rows + len(rows) > _ROWS_PER_BATCH:
            yield np.concatenate(batch)
            batch, num_rows = [], 0
        batch.append(content)
        num_rows += len(rows)
    if batch:
        yield np.concatenate(batch)


def _similar(pairs: np.ndarray, images: np.ndarray, limit: float) -> np.ndarray:
    """Return (m,) bool: whether the images (n, cells, channels) of each pair differ by at most `limit`."""
    similar = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), _PAIRS_PER_BATCH):
        some = pairs[start : start + _PAIRS_PER_BATCH]
        similar[start : start + len(some)] = differences(images[some[:, 0]], images[some[:, 1]]) <= limit
    return similar


def differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (n,) float32: the difference of the images of each pair, relative to their contrast; infinite without
    enough content.

    The second image is modeled as gain * first + offset, fitted by least squares on the agreeing 80 % of the content
    (found in three rounds); the result is the largest residual among those, divided by the standard deviation of the
    image. Content is what differs from the background of either image: two products on white have most of their
    cells in common.

    Args:
        first, second: (n, cells, channels) uint8, with corresponding cells.
    """
    shape = (len(first), -1)
    content = _content(first) | _content(second)  # (n, cells)
    enough = content.mean(axis=1) >= _MIN_CONTENT
    mask = np.repeat(content[:, :, None], first.shape[2], axis=2).reshape(shape)
    a, b = first.reshape(shape).astype(np.float32), second.reshape(shape).astype(np.float32)
    contrast = np.maximum(np.minimum(a.std(axis=1), b.std(axis=1)), 1.0)
    inliers = mask
    for _ in range(_ROUNDS):
        residuals = _residuals(a, b, inliers)
        residuals[~mask] = np.inf
        limit = _quantile_of_content(residuals, mask.sum(axis=1))
        inliers = residuals <= limit[:, None]
    # Rounding to integer gray levels alone is no difference.
    return np.where(enough, np.maximum(limit - 1.0, 0.0) / contrast, np.inf).astype(np.float32)


def _content(images: np.ndarray) -> np.ndarray:
    """Return (n, cells) bool: cells in which some channel differs from the median color of the image."""
    values = images.astype(np.float32)
    background = np.median(values, axis=1, keepdims=True)
    return (np.abs(values - background) > _BACKGROUND).any(axis=2)


def _residuals(a: np.ndarray, b: np.ndarray, inliers: np.ndarray) -> np.ndarray:
    weights = inliers.astype(np.float32)
    count = np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    mean_a, mean_b = ((weights * x).sum(axis=1, keepdims=True) / count for x in (a, b))
    variance = (weights * (a - mean_a) ** 2).sum(axis=1, keepdims=True)
    covariance = (weights * (a - mean_a) * (b - mean_b)).sum(axis=1, keepdims=True)
    gain = np.clip(covariance / np.maximum(variance, 1e-6), *_GAIN)
    return np.abs((b - mean_b) - gain * (a - mean_a))


def _quantile_of_content(residuals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return (n,): the _AGREEING quantile of the residuals of the content; those of other cells are infinite."""
    rank = np.maximum(np.ceil(_AGREEING * counts).astype(int) - 1, 0)
    limit = np.sort(residuals, axis=1)[np.arange(len(residuals)), rank]
    return np.where(np.isfinite(limit), limit, 0.0)


def components(pairs: np.ndarray, num_rows: int) -> np.ndarray:
    """Return (num_rows,) int64: the smallest row of the connected component of each row, without a loop over rows.

    Args:
        pairs: (m, 2) rows that are connected.
    """
    root = np.arange(num_rows)
    first, second = pairs[:, 0], pairs[:, 1]
    while True:
        a, b = root[first], root[second]
        apart = a != b
        if not apart.any():
            return root
        # The larger root is attached to the smaller one; then every row points directly to its root.
        np.minimum.at(root, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while (root[root] != root).any():
            root = root[root]
        first, second = first[apart], second[apart]


def first_occurrence(values: np.ndarray) -> np.ndarray:
    """Return (n,) int64: for each value the index of the first equal one."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def component_rows(root: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each component of at least 2 rows, both ascending. `root` is as from `components`."""
    rows = np.flatnonzero(np.bincount(root, minlength=len(root))[root] > 1)
    order = rows[np.argsort(root[rows], kind='stable')]
    cuts = np.flatnonzero(np.diff(root[order])) + 1
    return np.split(order, cuts) if len(order) else []


def has_mixed_values(keys: np.ndarray, values: np.ndarray, num_keys: int) -> np.ndarray:
    """Return (num_keys,) bool: whether the rows of each key have different values, which are not negative."""
    lowest = np.full(num_keys, np.iinfo(np.int64).max)
    highest = np.full(num_keys, -1, np.int64)
    np.minimum.at(lowest, keys, values)
    np.maximum.at(highest, keys, values)
    return highest > lowest
