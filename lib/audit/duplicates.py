"""Which images are one picture (exact), and which are nearly so."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lib.audit.compare import differences
from lib.audit.gallery import Gallery
from lib.audit.groups import components, first_equal, members
from lib.audit.hashing import close_pairs
from lib.audit.scan import Closer, Scan, scan_closer

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
