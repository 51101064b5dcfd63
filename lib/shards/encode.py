"""The images in shards: small JPEGs without metadata, pixels that need no decoding, or copies of the files."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import simplejpeg
from PIL import Image

from lib.dataset.decode import DecodeError, decode, read_format
from lib.dataset.images import EncodedImages, FileImages
from lib.shards.index import RAW

# File extensions that WebDataset and timm read; a format that is not listed has its own name as extension.
_EXTENSIONS = {'JPEG': 'jpg', 'TIFF': 'tif'}
UNKNOWN = 'bin'
_MAX_JPEG_SIDE = 65_500  # of libjpeg


@dataclass(frozen=True)
class PackedImage:
    """One image as it is packed.

    Attributes:
        data: its bytes; empty if nothing is packed.
        extension: extension of the member's name, without the dot.
        width, height: pixels, from the header; 0 if unknown.
        fault: the reason why it cannot be decoded; '' if none is known.
    """

    data: bytes
    extension: str = 'jpg'
    width: int = 0
    height: int = 0
    fault: str = ''


@dataclass(frozen=True)
class Reencode:
    """Decode upright, reduce the short side to `short_side` (never enlarge), write a JPEG of `quality`.

    No metadata is stored, such as GPS positions. The filter is Lanczos, since packing happens once and training resizes
    its result again; chroma subsampling is 4:2:0, as in cameras: a fifth smaller and faster to decode than 4:4:4.
    """

    short_side: int
    quality: int = 90

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the bytes, for the index."""
        return {'images': 'reencode', 'short_side': self.short_side, 'quality': self.quality}

    def __call__(self, data: bytes) -> PackedImage:
        """Return the packed image, without bytes if it cannot be decoded."""
        try:
            image = _reduced(decode(data), self.short_side)
        except DecodeError as error:
            return PackedImage(b'', fault=str(error))
        if max(image.size) > _MAX_JPEG_SIDE:
            fault = f'{image.width} x {image.height} pixels when packed; a JPEG has at most {_MAX_JPEG_SIDE:,} a side'
            return PackedImage(b'', fault=fault)
        pixels = np.ascontiguousarray(np.asarray(image))
        encoded = simplejpeg.encode_jpeg(pixels, quality=self.quality, colorsubsampling='420', fastdct=False)
        return PackedImage(encoded, 'jpg', image.width, image.height)

    def num_bytes(self, images: EncodedImages, row: int) -> int:
        """Return 0: the files are small, and their size is known when they are packed."""
        return 0


@dataclass(frozen=True)
class Raw:
    """Decode and reduce as Reencode does, and store the pixels: about seven times the bytes, and nothing to decode.

    Each image is an uncompressed TIFF file, which any program reads; its last bytes are the pixels.
    """

    short_side: int

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the bytes, for the index."""
        return {'images': RAW, 'short_side': self.short_side}

    def __call__(self, data: bytes) -> PackedImage:
        """Return the packed image, without bytes if it cannot be decoded."""
        try:
            image = _reduced(decode(data), self.short_side)
        except DecodeError as error:
            return PackedImage(b'', fault=str(error))
        file = BytesIO()
        image.save(file, 'TIFF', compression='raw')
        if not file.getbuffer()[-3 * image.width * image.height :] == image.tobytes():
            raise AssertionError('Pillow writes the pixels of a TIFF file elsewhere')
        return PackedImage(file.getvalue(), 'tif', image.width, image.height)

    def num_bytes(self, images: EncodedImages, row: int) -> int:
        """Return about how many bytes the packed image takes, from its header; 0 if it cannot be read."""
        try:
            _, *size = read_format(images.read(row))
        except Exception:  # header parsers raise many types; packing words the fault
            return 0
        width, height = _reduced_size((size[0], size[1]), self.short_side)
        return 3 * width * height


def _reduced(image: Image.Image, short_side: int) -> Image.Image:
    size = _reduced_size(image.size, short_side)
    if size == image.size:
        return image
    # According to Pillow's documentation, a gap of 3 or more is indistinguishable from fair resampling.
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _reduced_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    shorter = min(size)
    if shorter <= short_side:
        return size
    width, height = (max(1, round(side * short_side / shorter)) for side in size)
    return width, height


@dataclass(frozen=True)
class Copy:
    """Store the bytes unchanged, with metadata. The header is read for the extension and the size only."""

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the bytes, for the index."""
        return {'images': 'copy'}

    def __call__(self, data: bytes) -> PackedImage:
        """Return the packed image with the given bytes, whatever they are."""
        try:
            name, width, height = read_format(data)
        except Exception:  # header parsers raise many types; `decode` words the fault and reads more formats
            return self._of_unknown_format(data)
        return PackedImage(data, _EXTENSIONS.get(name, name.lower()), width, height)

    def num_bytes(self, images: EncodedImages, row: int) -> int:
        """Return the bytes of a file; 0 if it cannot be read, or is in other shards."""
        try:
            return Path(images.path(row)).stat().st_size if isinstance(images, FileImages) else 0
        except (OSError, ValueError):
            return 0

    def _of_unknown_format(self, data: bytes) -> PackedImage:
        try:
            return PackedImage(data, UNKNOWN, *decode(data).size)
        except DecodeError as error:
            return PackedImage(data, UNKNOWN, fault=str(error))


class Encoding(Protocol):
    """The interface of Reencode, Raw and Copy."""

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the bytes, for the index."""

    def __call__(self, data: bytes) -> PackedImage:
        """Return the packed image."""

    def num_bytes(self, images: EncodedImages, row: int) -> int:
        """Return about how many bytes the packed image takes; 0 if that is unknown or little."""
