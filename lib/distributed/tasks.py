"""Tasks that are divided among ranks: each runs its own in worker processes, and rank 0 gets the results of all."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

import torch

from lib.distributed.process_group import ProcessGroup
from lib.runtime.workers import Work, run_in_processes

_SECONDS_BETWEEN_EXCHANGES = 10.0


def run_on_ranks(
    work: Work, tasks: Sequence[Any], *, num_workers: int, progress: Callable[[int], None], group: ProcessGroup
) -> Generator[Any]:
    """Yield the results of all tasks, in the order in which they arrive, on rank 0, and nothing on the others.

    Collective. Each rank runs a contiguous part of the tasks. The ranks send their results about every ten seconds, so
    memory does not grow with the number of tasks, and a slow rank is not mistaken for one that hangs.

    Args:
        work, tasks, num_workers: as in `run_in_processes`, on each rank.
        progress: called on rank 0 with the numbers that `work` reports on all ranks.

    Raises:
        As `run_in_processes`, on the rank of the task; the others end with it.
    """
    if group.world_size == 1:
        yield from run_in_processes(work, tasks, num_workers=num_workers, progress=progress)
        return
    exchange = _Exchange(group, progress)
    some = tasks[group.shard(len(tasks))]
    with closing(run_in_processes(work, some, num_workers=num_workers, progress=exchange.add_progress)) as results:
        for result in results:
            if group.is_main:
                yield result
            else:
                exchange.unsent.append(result)
            exchange.sync_if_due()
            yield from exchange.take_received()
    while not exchange.is_over:
        exchange.sync(is_done=True)
        yield from exchange.take_received()


class _Exchange:
    """Sends results and progress of the ranks to rank 0, at the same times on all of them.

    Attributes:
        unsent: results of this rank since the last time.
        is_over: all ranks have sent all results.
    """

    def __init__(self, group: ProcessGroup, progress: Callable[[int], None]) -> None:
        self.unsent: list[Any] = []
        self.is_over = False
        self._group, self._progress = group, progress
        self._received: list[Any] = []
        self._count, self._synced_at = 0, time.monotonic()

    def add_progress(self, count: int) -> None:
        """Report progress of this rank; it may be the time to send it, too, since a task may take minutes."""
        if self._group.is_main:
            self._progress(count)
        else:
            self._count += count
        self.sync_if_due()

    def sync_if_due(self) -> None:
        """Send the results if the last time was long ago."""
        if time.monotonic() - self._synced_at >= _SECONDS_BETWEEN_EXCHANGES:
            self.sync(is_done=False)

    def sync(self, *, is_done: bool) -> None:
        """Send the results, and wait for the other ranks that do the same. `is_done`: these are the last ones."""
        for results, count in self._group.gather_objects((self.unsent, self._count)):
            self._received += results
            self._progress(count)
        self.is_over = not int(self._group.all_reduce(torch.tensor(int(not is_done))))
        self.unsent, self._count, self._synced_at = [], 0, time.monotonic()

    def take_received(self) -> list[Any]:
        """Return the results that have arrived since the last call."""
        received, self._received = self._received, []
        return received
