"""Where images come from, by row: files, or memory."""

import os
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from lib.dataset.decode import decode
from lib.dataset.lazy_image import LazyImage, LazyPixelImage, open_lazy_image

FIRST_PAUSE_SECONDS = 0.05  # doubles with every attempt


class Images(Protocol):
    """The images of a split."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """Return what to call an image in messages."""

    def open(self, row: int) -> LazyImage:
        """Return an image of which at least the header is read. Raises: OSError, DecodeError."""

    def load(self, row: int) -> Image.Image:
        """Return a whole image, upright RGB. Raises: OSError, DecodeError."""


class EncodedImages:
    """Images that are kept as the bytes of image files; a subclass says where (`read`, `name`, `__len__`)."""

    def read(self, row: int) -> bytes:
        """Return the file of one image. Raises: OSError, or DecodeError where it is known to be damaged."""
        raise NotImplementedError

    def open(self, row: int) -> LazyImage:
        """Return an image of which at least the header is read. Raises: OSError, DecodeError."""
        return open_lazy_image(self.read(row))

    def load(self, row: int) -> Image.Image:
        """Return a whole image, upright RGB. Raises: OSError, DecodeError."""
        return decode(self.read(row))


class FileImages(EncodedImages):
    """The images of a list of files, decoded when asked for."""

    def __init__(self, paths: Sequence[str], root: str = '') -> None:
        """`paths`: relative to `root`; a list, or a column of an Arrow file where there are millions."""
        self.paths = paths
        self.root = root

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, row: int) -> str:
        """Return the path that is opened."""
        return os.path.join(self.root, str(self.paths[int(row)]))

    def read(self, row: int) -> bytes:
        """Return the file. Raises: OSError."""
        return read_bytes(self.name(row))


class ArrayImages:
    """Images that are in memory already, such as CIFAR's."""

    def __init__(self, images: np.ndarray) -> None:
        """`images`: uint8 (num_images, height, width, 3), RGB."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f'images are {images.dtype} {images.shape}; uint8 (n, height, width, 3) is needed')
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def name(self, row: int) -> str:
        """Return a name for messages."""
        return f'image {int(row)}'

    def open(self, row: int) -> LazyImage:
        """Return an image."""
        return LazyPixelImage(self.images[int(row)])

    def load(self, row: int) -> Image.Image:
        """Return an image."""
        return Image.fromarray(self.images[int(row)])


class SomeImages:
    """Some of the images of others."""

    def __init__(self, images: Images, rows: np.ndarray) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int) -> str:
        """Return what to call an image in messages."""
        return self.images.name(int(self.rows[int(row)]))

    def open(self, row: int) -> LazyImage:
        """Return an image of which at least the header is read. Raises: OSError, DecodeError."""
        return self.images.open(int(self.rows[int(row)]))

    def load(self, row: int) -> Image.Image:
        """Return a whole image, upright RGB. Raises: OSError, DecodeError."""
        return self.images.load(int(self.rows[int(row)]))


def read_bytes(path: str | os.PathLike, attempts: int = 3) -> bytes:
    """Return a file's content, trying again when the disk or the network stumbles.

    Raises: OSError after `attempts` failures; at once when the file is absent, a folder or forbidden.
    """
    for attempt in range(attempts):
        try:
            with open(path, 'rb', buffering=0) as file:
                return file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
            raise  # waiting does not mend these
        except OSError:
            if attempt + 1 == attempts:
                raise
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    raise ValueError(f'attempts is {attempts}; at least 1 is needed')
