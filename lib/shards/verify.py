"""Reading back what was packed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.dataset.decode import DecodeError
from lib.shards.images import ShardImages


@dataclass(frozen=True)
class ShardReader:
    """Reads whole shards as training would, each image with its checksum; called in any process, with any shard."""

    images: ShardImages

    def __call__(self, number: int, progress: Callable[[int], None]) -> tuple[int, str]:
        """Return the shard's number and what is wrong with it ('' when nothing is).

        Raises:
            OSError: it cannot be read.
        """
        index = self.images.index
        shard = index.contents.shards[number]
        path = Path(index.path).with_name(shard.name)
        if not path.exists():
            return number, f'{path}: no such file'
        if path.stat().st_size != shard.size:
            return number, f'{path}: has {path.stat().st_size} bytes, but {shard.size} were written'
        for row in np.flatnonzero(index.shards == number).tolist():
            if index.lengths[row]:
                try:
                    self.images.read(row)
                except DecodeError as error:
                    return number, str(error)
            progress(1)
        return number, ''
