"""What becomes of an image when it is packed: a small JPEG without metadata, or its bytes as they are."""

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from lib.dataset.decode import FORMATS, DecodeError, decode

# Names that WebDataset and timm know; a format that is not listed is called by its own name.
_ENDINGS = {'JPEG': 'jpg', 'MPO': 'jpg', 'TIFF': 'tif'}
UNKNOWN = 'bin'


@dataclass(frozen=True)
class Stored:
    """One image as it is packed.

    Attributes:
        data: empty when nothing is stored.
        ending: of the member's name, without the dot.
        width, height: pixels, as the header has them; 0 where unknown.
        fault: why it cannot be decoded; '' where nothing is known to be wrong.
    """

    data: bytes
    ending: str = 'jpg'
    width: int = 0
    height: int = 0
    fault: str = ''


@dataclass(frozen=True)
class Reencode:
    """Decode upright, shrink until the short side is `short_side` (never enlarge), write a JPEG of `quality`.

    No metadata survives, GPS positions least of all. Lanczos, since packing happens once and its result is resized
    again in training; 4:2:0, as cameras write it: a fifth smaller and faster to decode than 4:4:4.
    """

    short_side: int
    quality: int = 90

    def settings(self) -> dict[str, Any]:
        """Return what decides the bytes, for the index."""
        return {'images': 'reencode', 'short_side': self.short_side, 'quality': self.quality}

    def __call__(self, data: bytes) -> Stored:
        """Return what is packed; nothing for an image that cannot be decoded."""
        try:
            image = self._shrunk(decode(data))
        except DecodeError as error:
            return Stored(b'', fault=str(error))
        pixels = np.ascontiguousarray(np.asarray(image))
        encoded = simplejpeg.encode_jpeg(pixels, quality=self.quality, colorsubsampling='420', fastdct=False)
        return Stored(encoded, 'jpg', image.width, image.height)

    def _shrunk(self, image: Image.Image) -> Image.Image:
        shorter = min(image.size)
        if shorter <= self.short_side:
            return image
        width, height = (max(1, round(side * self.short_side / shorter)) for side in image.size)
        # From 3 on, Pillow's documentation calls the first, coarse step indistinguishable.
        return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


@dataclass(frozen=True)
class Copy:
    """Keep the bytes, metadata included. Only the header is looked at, for the ending of the name and the size."""

    def settings(self) -> dict[str, Any]:
        """Return what decides the bytes, for the index."""
        return {'images': 'copy'}

    def __call__(self, data: bytes) -> Stored:
        """Return what is packed: the bytes, whatever they are."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                image = Image.open(BytesIO(data), formats=FORMATS)
        except Exception:  # parsers of headers fail in many ways; `decode` knows what to say, and more formats
            return self._of_unknown_form(data)
        return Stored(data, _ENDINGS.get(image.format, image.format.lower()), *image.size)

    def _of_unknown_form(self, data: bytes) -> Stored:
        try:
            return Stored(data, UNKNOWN, *decode(data).size)
        except DecodeError as error:
            return Stored(data, UNKNOWN, fault=str(error))
