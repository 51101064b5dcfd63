"""The processes of one run, as torchrun starts them: how they share work, and how they agree."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: from 0; that one writes files and speaks.
        count: how many there are.
        local: number among those of this machine, which is the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this rank writes."""
        return self.rank == 0

    def share(self, total: int, start: int = 0) -> slice:
        """Return this rank's contiguous part of `total` things that begin at `start`; parts differ by 1 at most."""
        return slice(start + self.rank * total // self.count, start + (self.rank + 1) * total // self.count)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, of the tensor's shape, on its device. Takes no gradient."""
        if self.count == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def join(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows (any number a rank) of all ranks, in their order, to each of them."""
        if self.count == 1:
            return rows
        parts: list = [None] * self.count
        dist.all_gather_object(parts, rows)
        return np.concatenate(parts)

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        if self.count > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main rank go through the block before the others: what it leaves on the disk, they find."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()


ALONE = Ranks()


def torchrun_ranks() -> Ranks:
    """Return what torchrun says in the environment; ALONE where nothing did."""
    if 'RANK' not in os.environ or 'WORLD_SIZE' not in os.environ:
        return ALONE
    return Ranks(int(os.environ['RANK']), int(os.environ['WORLD_SIZE']), int(os.environ.get('LOCAL_RANK', 0)))
