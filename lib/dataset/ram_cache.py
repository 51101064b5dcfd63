"""RAM cache: the decoded images of a small data set in shared memory, read once for all workers."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from lib.dataset.crop_resize import crop_resize
from lib.dataset.decode import DecodeError
from lib.dataset.images import Images
from lib.dataset.lazy_image import LazyImage, LazyPixelImage
from lib.dataset.transforms import CropParams
from lib.runtime.log import progress_bar
from lib.runtime.shared_memory import SharedMemoryFull, free_shared_bytes, shared_empty

_RESERVED = 0.1  # fraction of the free shared memory that is left for batches and everything else
_CHUNK = 1024  # images in progress at a time, so that Ctrl-C takes effect


class CachedImages:
    """Decoded images in shared memory, their short side reduced to at most `short_side` pixels.

    Images that cannot be read or decoded are not cached: every access raises their error, as without a cache.
    """

    is_remote = False

    def prefetch(self, rows: np.ndarray) -> None:
        """Do nothing."""

    def __init__(self, images: Images, short_side: int, *, label: str, num_threads: int) -> None:
        """Read all images in `num_threads` threads; `label` names the progress bar.

        Raises:
            SharedMemoryFull: there is not enough memory; no pixel has been decoded then.
        """
        self._images = images
        self._short_side = short_side
        with ThreadPoolExecutor(num_threads) as pool:
            sizes = np.array(list(self._progress(pool, self._reduced_size, f'{label}: sizes')), np.int32)
            self._sizes = sizes.reshape(-1, 2)  # (num_images, 2): width, height; zeros: not cached
            lengths = self._sizes.astype(np.int64).prod(axis=1) * 3
            self._starts = np.concatenate([[0], np.cumsum(lengths)])
            _check_free(int(self._starts[-1]), label)
            self._pixels = shared_empty(int(self._starts[-1]))
            readable = list(self._progress(pool, self._fill, f'{label}: cache'))
        self._sizes[~np.array(readable, bool)] = 0

    def __len__(self) -> int:
        return len(self._images)

    def name(self, row: int) -> str:
        """Return the name of an image for messages."""
        return self._images.name(row)

    def open(self, row: int) -> LazyImage:
        """Return the cached image. Raises: OSError, DecodeError."""
        if not self._sizes[row].all():
            return self._images.open(row)
        return LazyPixelImage(self._canvas(row))

    def load(self, row: int) -> Image.Image:
        """Return the whole image, not the reduced one. Raises: OSError, DecodeError."""
        return self._images.load(row)

    def _canvas(self, row: int) -> np.ndarray:
        width, height = self._sizes[row].tolist()
        return self._pixels[self._starts[row] : self._starts[row + 1]].view(height, width, 3).numpy()

    def _prefetched(self, rows: range) -> range:
        if self._images.is_remote:
            self._images.prefetch(np.arange(rows.start, rows.stop))
        return rows

    def _reduced_size(self, row: int) -> tuple[int, int]:
        try:
            image = self._images.open(row)
        except (DecodeError, OSError):
            return 0, 0
        scale = min(1.0, self._short_side / min(image.width, image.height))
        return max(1, round(image.width * scale)), max(1, round(image.height * scale))

    def _fill(self, row: int) -> bool:
        width, height = self._sizes[row].tolist()
        if not width:
            return False
        try:
            image = self._images.open(row)
            crop_resize(image, CropParams((0, 0, image.width, image.height), width, height), self._canvas(row))
        except (DecodeError, OSError):
            return False
        return True

    def _progress(self, pool: ThreadPoolExecutor, work: Callable[[int], Any], label: str) -> Iterable:
        chunks = (range(start, min(start + _CHUNK, len(self))) for start in range(0, len(self), _CHUNK))
        results = (result for rows in map(self._prefetched, chunks) for result in pool.map(work, rows))
        return progress_bar(results, total=len(self), label=label, unit='image')


def _check_free(num_bytes: int, label: str) -> None:
    free = free_shared_bytes()
    if free is not None and num_bytes > free * (1 - _RESERVED):
        raise SharedMemoryFull(
            f'{label} takes {num_bytes / 1e9:.1f} GB of shared memory, and {free / 1e9:.1f} GB are free'
        )
