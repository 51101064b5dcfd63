"""All images of a gallery, each decoded once: columns of what was seen, some 300 bytes an image.

The images of several splits behind one another, and work on them in several processes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lib.audit.hashing import grey_cells, perceptual_hash
from lib.audit.image_stats import SIDE, look_at, look_closer
from lib.dataset.decode import DecodeError
from lib.dataset.images import ArrayImages
from lib.runtime.workers import run_tasks


class Gallery:
    """Rows of several splits, numbered through.

    Args:
        sources: the images of each split, by row.
        sizes: how many each has.
    """

    def __init__(self, sources: Sequence[Any], sizes: Sequence[int]) -> None:
        self.sources = list(sources)
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def split_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of the split that each row is in."""
        return np.searchsorted(self.starts, rows, side='right') - 1

    def place(self, row: int) -> tuple[int, int]:
        """Return the split and the row there."""
        split = int(self.split_of(np.asarray(row)))
        return split, int(row) - int(self.starts[split])

    def content(self, row: int) -> bytes | np.ndarray:
        """Return a file's bytes, or the pixels (height, width, 3) of an image that is in memory anyway.

        Raises: OSError.
        """
        split, row = self.place(row)
        images = self.sources[split]
        if isinstance(images, ArrayImages):
            return images.images[row]
        return images.read(row)


READABLE, UNREADABLE, MISSING = range(3)
_JOB = 64  # images: long enough for little traffic, short enough for a quick Ctrl-C
CELLS = 256  # grey values kept of each picture: 16 x 16
_SEEN = np.dtype(
    [
        ('state', np.uint8),
        ('format', np.uint8),
        ('contrast', np.uint8),
        ('width', np.int32),
        ('height', np.int32),
        ('num_bytes', np.int64),
        ('hash', np.uint64),
        ('digest', np.uint64),
        ('cells', np.uint8, (CELLS,)),
    ]
)


@dataclass
class Scan:
    """What was seen of each row.

    Attributes:
        seen: (num_images,) records: state; format (of look.FORMATS); contrast (brightest less darkest cell, 0 to
            255); width, height (pixels); num_bytes; hash (perceptual, 64 bits); digest (of all grey pixels); cells
            (16 x 16 grey values).
        reasons: row -> why it is not readable.
        faults: row -> what its decoder got over.
    """

    seen: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)

    @property
    def readable(self) -> np.ndarray:
        """(num_images,) bool."""
        return self.seen['state'] == READABLE


def scan(gallery: Gallery, *, num_workers: int, tell: Callable[[int], object] = lambda count: None) -> Scan:
    """Decode every image; `tell` is called with the number of images of each finished job."""
    found = Scan(np.zeros(len(gallery), _SEEN))
    for rows, (seen, reasons, faults) in in_parallel(_scan_some, gallery, np.arange(len(gallery)), num_workers):
        found.seen[rows] = seen
        found.reasons.update(reasons)
        found.faults.update(faults)
        tell(len(rows))
    # Jobs end in any order.
    found.reasons, found.faults = dict(sorted(found.reasons.items())), dict(sorted(found.faults.items()))
    return found


@dataclass
class Closer:
    """A second look at some rows, in colour.

    Attributes:
        rows: (n,) in rising order.
        digests: (n,) of all pixels.
        pictures: (n, 32, 32, 3) uint8.
    """

    rows: np.ndarray
    digests: np.ndarray
    pictures: np.ndarray

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Return where these rows stand."""
        return np.searchsorted(self.rows, rows)


def scan_closer(
    gallery: Gallery, rows: np.ndarray, *, num_workers: int, tell: Callable[[int], object] = lambda count: None
) -> Closer:
    """Look again at `rows`, which rise and were readable."""
    found = Closer(rows, np.zeros(len(rows), np.uint64), np.zeros((len(rows), SIDE, SIDE, 3), np.uint8))
    for some, (digests, pictures) in in_parallel(_scan_some_closer, gallery, rows, num_workers):
        places = found.places(some)
        found.digests[places], found.pictures[places] = digests, pictures
        tell(len(some))
    return found


@dataclass(frozen=True)
class _OnRows:
    """What a process does with the rows it is handed."""

    work: Callable[[Gallery, np.ndarray], Any]
    gallery: Gallery

    def __call__(self, rows: np.ndarray, progress: Callable[[int], None]) -> tuple[np.ndarray, Any]:
        return rows, self.work(self.gallery, rows)


def in_parallel(
    work: Callable[[Gallery, np.ndarray], Any], gallery: Gallery, rows: np.ndarray, num_workers: int
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield (some of the rows, what `work` makes of them) until all have had their turn, in any order."""
    jobs = [rows[start : start + _JOB] for start in range(0, len(rows), _JOB)]
    few = len(jobs) < 2  # not worth a process
    return run_tasks(_OnRows(work, gallery), jobs, num_workers=0 if few else num_workers, progress=lambda count: None)


def _scan_some(gallery: Gallery, rows: np.ndarray) -> tuple[np.ndarray, dict[int, str], dict[int, str]]:
    seen = np.zeros(len(rows), _SEEN)
    greys = np.zeros((len(rows), SIDE, SIDE), np.uint8)
    reasons: dict[int, str] = {}
    faults: dict[int, str] = {}
    for place, row in enumerate(rows.tolist()):
        try:
            content = gallery.content(row)
            seen['num_bytes'][place] = content.nbytes if isinstance(content, np.ndarray) else len(content)
            look = look_at(content)
        except (DecodeError, OSError) as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            seen['state'][place] = MISSING if missing else UNREADABLE
            reasons[row] = _reason(error)
            continue
        greys[place] = look.grey
        if look.fault:
            faults[row] = look.fault
        seen['width'][place], seen['height'][place] = look.width, look.height
        seen['format'][place] = look.format
        seen['digest'][place] = look.digest
    seen['hash'] = perceptual_hash(greys)
    seen['cells'] = grey_cells(greys).reshape(len(rows), CELLS)
    seen['contrast'] = greys.max(axis=(1, 2)) - greys.min(axis=(1, 2))
    return seen, reasons, faults


def _scan_some_closer(gallery: Gallery, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    digests, pictures = np.zeros(len(rows), np.uint64), np.zeros((len(rows), SIDE, SIDE, 3), np.uint8)
    for place, row in enumerate(rows.tolist()):
        try:
            digests[place], pictures[place] = look_closer(gallery.content(row))
        except (DecodeError, OSError):  # gone since the first look: like no other
            digests[place] = row
    return digests, pictures


def _reason(error: DecodeError | OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return 'no such file'
    if isinstance(error, IsADirectoryError):
        return 'a folder, not a file'
    if isinstance(error, OSError):
        return f'cannot be read ({error.strerror or error})'
    return str(error)
