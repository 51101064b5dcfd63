"""One pass over all images of several splits, in several processes and ranks: 300 bytes of statistics per image.

Each image is decoded once, in grayscale. Possible duplicates are decoded again, in color.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lib.audit.hashing import gray_cells, perceptual_hash
from lib.audit.image_stats import SIDE, color_details, image_stats
from lib.dataset.decode import DecodeError
from lib.dataset.images import ArrayImages
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.distributed.tasks import run_on_ranks
from lib.runtime.column_store import ColumnStore


class ConcatImages:
    """The images of several splits, concatenated: row numbers run through all splits.

    Args:
        sources: the images of each split, by row.
        sizes: number of images of each split.
    """

    def __init__(self, sources: Sequence[Any], sizes: Sequence[int]) -> None:
        self.sources = list(sources)
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def split_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the index of the split of each row."""
        return np.searchsorted(self.starts, rows, side='right') - 1

    def locate(self, row: int) -> tuple[int, int]:
        """Return the index of the split and the row within the split."""
        split = int(self.split_of(np.asarray(row)))
        return split, int(row) - int(self.starts[split])

    def content(self, row: int) -> bytes | np.ndarray:
        """Return the bytes of a file, or the pixels (height, width, 3) of an image that is in memory.

        Raises: OSError.
        """
        split, row = self.locate(row)
        images = self.sources[split]
        if isinstance(images, ArrayImages):
            return images.images[row]
        return images.read(row)


READABLE, UNREADABLE, MISSING = range(3)
ROWS_PER_TASK = 64  # enough to make the exchange between processes cheap, few enough for a quick Ctrl-C
CELLS = 256  # gray values stored per image: 16 x 16
STATS_DTYPE = np.dtype(
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
    """Statistics of each image, from its grayscale pixels.

    Attributes:
        stats: (num_images,) records: state; format (index into image_stats.FORMATS); contrast (brightest minus darkest
            pixel of the thumbnail, 0 to 255); width, height (pixels); num_bytes; hash (perceptual, 64 bits); digest (of
            all gray pixels); cells (16 x 16 gray values).
        errors: row -> reason why the image is missing or unreadable.
        warnings: row -> error from which the decoder recovered.
    """

    stats: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    warnings: dict[int, str] = field(default_factory=dict)

    @property
    def readable(self) -> np.ndarray:
        """(num_images,) bool."""
        return self.stats['state'] == READABLE


def scan(
    images: ConcatImages,
    *,
    num_workers: int,
    progress: Callable[[int], object] = lambda count: None,
    group: ProcessGroup = SINGLE_PROCESS,
    store: ColumnStore | None = None,
) -> Scan:
    """Decode every image; `progress` is called with the number of images of each finished task.

    Each rank decodes a part of the images; rank 0 returns the statistics of all, and the others an empty result.

    Args:
        store: of `scan_columns`, on rank 0, for the statistics: those that it has are not computed again. None: they
            are in memory only.
    """
    stats = np.zeros(len(images) if group.is_main else 0, STATS_DTYPE)
    messages: dict[int, str] = {}
    if store is not None:
        stats = store.columns['stats'].view(STATS_DTYPE)[:, 0]
        progress(int(store.done.sum()))
    done = group.broadcast_object(np.zeros(len(images), bool) if store is None else store.done)
    for rows, (some, found) in map_rows(_scan_rows, images, np.flatnonzero(~done), num_workers, group):
        if store is None:
            stats[rows] = some
            messages.update(found)
        else:  # tasks are the same in every call, so their rows are consecutive
            store.write(slice(int(rows[0]), int(rows[-1]) + 1), {'stats': _bytes_of(some)}, [*found.items()])
        progress(len(rows))
    if store is not None:
        store.flush()
        messages = dict(store.errors())
    result = Scan(stats)
    for row, message in sorted(messages.items()):  # tasks finish in any order
        (result.warnings if stats['state'][row] == READABLE else result.errors)[row] = message
    return result


def scan_columns() -> dict[str, tuple[type, tuple[int, ...]]]:
    """Return the columns of a store of statistics: the bytes of a record of STATS_DTYPE."""
    return {'stats': (np.uint8, (STATS_DTYPE.itemsize,))}


def _bytes_of(stats: np.ndarray) -> np.ndarray:
    return stats.view(np.uint8).reshape(len(stats), STATS_DTYPE.itemsize)


@dataclass
class ColorScan:
    """Digests and thumbnails of some rows, in color.

    Attributes:
        rows: (n,) ascending.
        digests: (n,) of all pixels.
        thumbnails: (n, 32, 32, 3) uint8.
    """

    rows: np.ndarray
    digests: np.ndarray
    thumbnails: np.ndarray

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Return the positions of `rows` in `self.rows`."""
        return np.searchsorted(self.rows, rows)


def scan_colors(
    images: ConcatImages, rows: np.ndarray, *, num_workers: int, group: ProcessGroup = SINGLE_PROCESS
) -> ColorScan:
    """Decode readable images again, in color; `rows` is ascending. Ranks as in `scan`."""
    result = ColorScan(rows, np.zeros(len(rows), np.uint64), np.zeros((len(rows), SIDE, SIDE, 3), np.uint8))
    for some, (digests, thumbnails) in map_rows(_scan_colors_of_rows, images, rows, num_workers, group):
        positions = result.positions(some)
        result.digests[positions], result.thumbnails[positions] = digests, thumbnails
    return result


@dataclass(frozen=True)
class _RowsTask:
    """Calls `work` with the images and the rows of a task, in a worker process."""

    work: Callable[[ConcatImages, np.ndarray], Any]
    images: ConcatImages

    def __call__(self, rows: np.ndarray, progress: Callable[[int], None]) -> tuple[np.ndarray, Any]:
        return rows, self.work(self.images, rows)


def map_rows(
    work: Callable[[ConcatImages, np.ndarray], Any],
    images: ConcatImages,
    rows: np.ndarray,
    num_workers: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield (some of the rows, `work(images, these rows)`) for all rows, in the order in which the results arrive.

    All ranks must call it with the same rows; rank 0 gets all results, and the others none.
    """
    tasks = [rows[start : start + ROWS_PER_TASK] for start in range(0, len(rows), ROWS_PER_TASK)]
    if len(tasks) < 2:  # not worth a process
        num_workers = 0
    task, ignore = _RowsTask(work, images), lambda count: None
    return run_on_ranks(task, tasks, num_workers=num_workers, progress=ignore, group=group)


def _scan_rows(images: ConcatImages, rows: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Return the records of the rows, and row -> error, or, of a readable image, warning."""
    stats = np.zeros(len(rows), STATS_DTYPE)
    thumbnails = np.zeros((len(rows), SIDE, SIDE), np.uint8)
    messages: dict[int, str] = {}
    for i, row in enumerate(rows.tolist()):
        try:
            content = images.content(row)
            stats['num_bytes'][i] = content.nbytes if isinstance(content, np.ndarray) else len(content)
            image = image_stats(content)
        except (DecodeError, OSError) as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            stats['state'][i] = MISSING if missing else UNREADABLE
            messages[row] = _reason(error)
            continue
        thumbnails[i] = image.thumbnail
        if image.warning:
            messages[row] = image.warning
        stats['width'][i], stats['height'][i] = image.width, image.height
        stats['format'][i] = image.format
        stats['digest'][i] = image.digest
    stats['hash'] = perceptual_hash(thumbnails)
    stats['cells'] = gray_cells(thumbnails).reshape(len(rows), CELLS)
    stats['contrast'] = thumbnails.max(axis=(1, 2)) - thumbnails.min(axis=(1, 2))
    return stats, messages


def _scan_colors_of_rows(images: ConcatImages, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    digests, thumbnails = np.zeros(len(rows), np.uint64), np.zeros((len(rows), SIDE, SIDE, 3), np.uint8)
    for i, row in enumerate(rows.tolist()):
        try:
            digests[i], thumbnails[i] = color_details(images.content(row))
        except (DecodeError, OSError):  # removed since the first pass: equal to no other image
            digests[i] = row
    return digests, thumbnails


def _reason(error: DecodeError | OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return 'no such file'
    if isinstance(error, IsADirectoryError):
        return 'a folder, not a file'
    if isinstance(error, OSError):
        return f'cannot be read ({error.strerror or error})'
    return str(error)
