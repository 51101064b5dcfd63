"""Images that a program passes to the library: paths, the bytes of image files, Pillow's images, arrays of pixels."""

import os
import threading
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from lib.dataset.decode import check_size
from lib.dataset.decode_cost import DecodeError, TooLargeError, check_memory
from lib.dataset.images import read_image_file
from lib.dataset.lazy_image import LazyImage, LazyPixelImage, open_lazy_image
from lib.dataset.upright_rgb import no_warnings, orientation, pixels_of, to_rgb, upright
from lib.errors import shown, url_fault, url_scheme
from lib.runtime.read_file import MAX_IMAGE_BYTES, reason_of

GivenImage: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray
_FORMS = 'a path, the bytes of an image file, a Pillow image, or a uint8 array (height, width, 3)'
_BUFFERS = (bytes, bytearray, memoryview)
_TYPES = (str, os.PathLike, Image.Image, *_BUFFERS)  # of one image, beside arrays
# Pillow's images load on first use, which several threads must not do at a time.
_loading = threading.Lock()


def is_image(value: object) -> bool:
    """Return whether a value is one image, in contrast to a sequence of them."""
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3)
    return isinstance(value, _TYPES)


def check_image(value: object, name: str = 'the image') -> None:
    """Raise TypeError for a value that is no image of any form, and ValueError for an array of another form."""
    if not is_image(value):
        kind = f'an array of shape {shown(value.shape)}' if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f'{name} is {kind}, but must be {_FORMS}')
    if isinstance(value, np.ndarray) and (value.dtype != np.uint8 or value.shape[2:] not in ((), (1,), (3,), (4,))):
        raise ValueError(
            f'{name} is an array {value.dtype} {shown(value.shape)}, but must be uint8 (height, width, 3), RGB; '
            'or (height, width), gray; or (height, width, 4), with transparency'
        )


def check_images(images: Any) -> Iterable[GivenImage]:
    """Return a sequence of images, or an iterator over them. Raises: TypeError, if it is neither."""
    is_file = hasattr(images, 'read')  # its lines are no images
    if is_file or is_image(images) or isinstance(images, Mapping | AbstractSet) or not isinstance(images, Iterable):
        hint = '; one image is its path, or file.read()' if is_file else ''
        kind = type(images).__name__
        raise TypeError(f'images are of type {kind}, but must be a list or another sequence of images{hint}')
    return images


def open_image(image: GivenImage) -> LazyImage:
    """Return an image, of which at least the header is read.

    Files are decoded as those of a split, with the same limits of memory and time. A Pillow image is turned upright and
    composed with white, too; its pixels are as Pillow decodes them, which for a JPEG differ slightly from those of
    its file, since a file is decoded at the smallest sufficient scale.

    Raises:
        DecodeError: it cannot be read or decoded.
    """
    if isinstance(image, np.ndarray):
        return LazyPixelImage(_array_pixels(image))
    if isinstance(image, Image.Image):
        return LazyPixelImage(_pillow_pixels(image))
    data = bytes(image) if isinstance(image, _BUFFERS) else _read(os.fsdecode(image))
    if len(data) > MAX_IMAGE_BYTES:
        raise TooLargeError(f'has {len(data):,} bytes; at most {MAX_IMAGE_BYTES:,} are allowed')
    return open_lazy_image(data)


def _read(path: str) -> bytes:
    try:
        return read_image_file(path)
    except FileNotFoundError:
        # Not downloaded, since a program may pass what a stranger typed.
        is_url = url_scheme(path) or url_fault(path)
        raise DecodeError('a URL; only local paths are read' if is_url else 'no such file') from None
    except OSError as error:
        raise DecodeError(reason_of(error)) from None


def _array_pixels(image: np.ndarray) -> np.ndarray:
    _check_size((image.shape[1], image.shape[0]))
    if image.shape[2:] == (3,):
        return np.ascontiguousarray(image)  # torch takes no negative strides, such as those of image[:, :, ::-1]
    layers = image[:, :, 0] if image.shape[2:] == (1,) else image
    return pixels_of(to_rgb(Image.fromarray(np.ascontiguousarray(layers))))


def _pillow_pixels(image: Image.Image) -> np.ndarray:
    _check_size(image.size)
    try:
        with _loading, no_warnings():
            check_memory(image, 0, is_turned=orientation(image) != 1)
            image.load()
        return pixels_of(to_rgb(upright(image)))
    except (DecodeError, MemoryError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise DecodeError(shown(error)) from None


def _check_size(size: tuple[int, int]) -> None:
    if not min(size):
        raise DecodeError(f'has {size[0]} x {size[1]} pixels')
    check_size(size)
