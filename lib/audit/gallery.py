"""The images of several splits behind one another, and work on them in several processes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lib.dataset.images import ArrayImages


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
