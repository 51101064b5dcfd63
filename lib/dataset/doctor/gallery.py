"""The images of several splits behind one another, and work on them in several processes."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from lib.dataset.images import ArrayImages
from lib.errors import UserError

_JOB = 64  # images: long enough for little traffic, short enough for a quick Ctrl-C
_AHEAD = 4  # jobs a process that wait for it


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


def in_parallel(
    work: Callable[[Gallery, np.ndarray], Any], gallery: Gallery, rows: np.ndarray, num_workers: int
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield (some of the rows, what `work` makes of them), in the order of the rows; 0 workers: in this process.

    Raises:
        UserError: a process was killed.
    """
    jobs = (rows[start : start + _JOB] for start in range(0, len(rows), _JOB))
    if num_workers == 0 or len(rows) <= _JOB:
        yield from ((job, work(gallery, job)) for job in jobs)
        return
    pool = ProcessPoolExecutor(num_workers, _fresh_processes(), _start_worker, (work, gallery))
    waiting: deque = deque()
    try:
        for job in jobs:
            waiting.append((job, pool.submit(_work_on, job)))
            if len(waiting) > _AHEAD * num_workers:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    except BrokenProcessPool:
        raise UserError(
            'a process that reads images was killed, most likely for want of memory; a smaller --RUN_NUM_WORKERS '
            'needs less, and --RUN_NUM_WORKERS 0 reads in one process'
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_WORK: list[Any] = []  # what a worker process does, and on what: sent once, not with every job


def _start_worker(work: Callable[[Gallery, np.ndarray], Any], gallery: Gallery) -> None:
    # Ctrl-C is the parent's, which then stops the workers: one message, not one a process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _WORK[:] = [work, gallery]


def _work_on(job: np.ndarray) -> Any:
    work, gallery = _WORK
    return work(gallery, job)


def _fresh_processes() -> multiprocessing.context.BaseContext:
    """Return how workers are started: never by forking a process that may hold threads."""
    if os.name == 'nt' or 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    return multiprocessing.get_context('forkserver')
