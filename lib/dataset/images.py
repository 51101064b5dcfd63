"""Image sources: the images of a split by row, from files or from an array."""

import os
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from lib.dataset.decode import decode
from lib.dataset.lazy_image import LazyImage, LazyPixelImage, open_lazy_image
from lib.dataset.paths import path_as_text, spelled_on_disk
from lib.errors import UserError, printable, unquoted
from lib.runtime import read_file
from lib.runtime.mirror import is_mirrored
from lib.runtime.read_file import MAX_IMAGE_BYTES, RefusedFileError
from lib.runtime.storage import fetch_ahead

FIRST_PAUSE_SECONDS = 0.05  # doubles with every attempt
# There is no file at the path that any process could read as an image.
NOT_AN_IMAGE_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, RefusedFileError)


class MissingImage(UserError):
    """There is no file at the path of a training image."""


class Images(Protocol):
    """The images of a split.

    Attributes:
        is_remote: reading waits for a server, so that callers name the rows that they will read: `prefetch`.
    """

    @property
    def is_remote(self) -> bool: ...

    def prefetch(self, rows: np.ndarray) -> None:
        """Begin to fetch the images of `rows`, where they are remote."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """Return the name of an image for messages."""

    def open(self, row: int) -> LazyImage:
        """Return an image of which at least the header is read. Raises: OSError, DecodeError."""

    def load(self, row: int) -> Image.Image:
        """Return a whole image, upright RGB. Raises: OSError, DecodeError."""


class EncodedImages:
    """Images stored as the bytes of image files; a subclass implements `read`, `name` and `__len__`."""

    is_remote = False

    def prefetch(self, rows: np.ndarray) -> None:
        """Begin to fetch the images of `rows`, where they are remote."""

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, row: int) -> str:
        """Return the name of an image for messages."""
        raise NotImplementedError

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
    """The images of a list of files, decoded on access."""

    def __init__(self, paths: Sequence[str], root: str = '') -> None:
        """Set the files: `paths`, relative to `root`, in a list or, for millions of them, in an Arrow column."""
        self.paths = paths
        self.root = root
        self.is_remote = is_mirrored(root)

    def prefetch(self, rows: np.ndarray) -> None:
        """Begin to download the files of `rows` that are in a bucket and not on the disk."""
        if self.is_remote:
            fetch_ahead(path for path in map(self.path, rows.tolist()) if is_mirrored(path))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, row: int) -> str:
        """Return the root and the path, which is shortened if it is very long, as one line of text, for messages."""
        return os.path.join(printable(self.root), unquoted(path_as_text(str(self.paths[int(row)]))))

    def path(self, row: int) -> str:
        """Return the path that is opened, if it exists as it is spelled."""
        return os.path.join(self.root, str(self.paths[int(row)]))

    def read(self, row: int) -> bytes:
        """Return the bytes of the file, also if the disk spells its path otherwise. Raises: OSError."""
        return read_image_file(self.path(row))


class ArrayImages:
    """Images that are in memory already, such as CIFAR's."""

    is_remote = False

    def prefetch(self, rows: np.ndarray) -> None:
        """Do nothing."""

    def __init__(self, images: np.ndarray) -> None:
        """Set the images: uint8 (num_images, height, width, 3), RGB. Raises: ValueError for another array."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f'images are {images.dtype} {images.shape}; uint8 (n, height, width, 3) is needed')
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def name(self, row: int) -> str:
        """Return the name of an image for messages."""
        return f'image {int(row)}'

    def open(self, row: int) -> LazyImage:
        """Return an image."""
        return LazyPixelImage(self.images[int(row)])

    def load(self, row: int) -> Image.Image:
        """Return an image."""
        return Image.fromarray(self.images[int(row)])


class SomeImages:
    """A subset of other images."""

    def __init__(self, images: Images, rows: np.ndarray) -> None:
        """Select `rows` of `images`."""
        self.images, self.rows = images, rows

    @property
    def is_remote(self) -> bool:
        """Return whether reading waits for a server."""
        return self.images.is_remote

    def prefetch(self, rows: np.ndarray) -> None:
        """Begin to fetch images, where they are remote."""
        self.images.prefetch(self.rows[rows])

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int) -> str:
        """Return the name of an image for messages."""
        return self.images.name(int(self.rows[int(row)]))

    def open(self, row: int) -> LazyImage:
        """Return an image of which at least the header is read. Raises: OSError, DecodeError."""
        return self.images.open(int(self.rows[int(row)]))

    def load(self, row: int) -> Image.Image:
        """Return a whole image, upright RGB. Raises: OSError, DecodeError."""
        return self.images.load(int(self.rows[int(row)]))


def read_image_file(path: str) -> bytes:
    """Return the bytes of an image file, also if the disk spells its path otherwise. Raises: OSError."""
    try:
        return read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        spelled = spelled_on_disk(path)
        if spelled is None:
            raise
        return read_bytes(spelled)


def read_bytes(path: str | os.PathLike, attempts: int = 3) -> bytes:
    """Return the bytes of a regular file, with new attempts after a failure of the disk or the network.

    Raises:
        OSError: after `attempts` failures; at once when it is absent, no regular file, too large or forbidden.
    """
    for attempt in range(attempts):
        try:
            return read_file.read_bytes(path, max_bytes=MAX_IMAGE_BYTES)
        except (*NOT_AN_IMAGE_FILE, PermissionError):
            raise  # another attempt would fail too
        except OSError:
            if attempt + 1 == attempts:
                raise
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    raise ValueError(f'attempts is {attempts}; at least 1 is needed')
