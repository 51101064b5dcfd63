"""Decoding on the device: workers pass JPEG files on, and the main process decodes and crops them on the GPU.

The crops have the geometry of `crop_resize`. Pixels differ slightly from those of the CPU: nvJPEG rounds and enlarges
chroma in another way, and decodes the whole image, where the CPU leaves out frequencies that the crop does not need.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from torch.nn.functional import interpolate

from lib.dataset.crop_resize import LEAST_SIDE, has_whole_box, paste
from lib.dataset.lazy_image import LazyImage, LazyJpegImage
from lib.dataset.transforms import CropParams
from lib.dataset.turbojpeg import seems_intact
from lib.dataset.upright_rgb import no_warnings
from lib.runtime.device import failure_reason

_MAX_FILE_BYTES = 2**20  # larger files take much shared memory, and the CPU decodes them at a reduced scale
_MAX_PIXELS = 2**26  # decoded at a time: 0.2 GB
_LEAST_SCALE = 1 / 32  # the filter of a stronger reduction exceeds the fast memory of a GPU
# Components (1: luma, 2, 3: chroma) and sampling factors of gray, 4:4:4, 4:2:2, 4:4:0 and 4:2:0.
_USUAL_COLORS = {(b'\1', b'\x11'), *((b'\1\2\3', bytes((luma, 0x11, 0x11))) for luma in (0x11, 0x21, 0x12, 0x22))}
_ADOBE_RGB = re.compile(rb'\xff\xee..Adobe.{6}\0', re.DOTALL)  # a segment for components that are red, green and blue


class EncodedImage(NamedTuple):
    """The decoding of one image of a batch.

    Attributes:
        position: in the batch.
        shape: (3, height, width) as stored.
        orientation: EXIF orientation, 1 to 8.
        crops: one per view.
    """

    position: int
    shape: tuple[int, int, int]
    orientation: int
    crops: Sequence[CropParams]


class EncodedImages:
    """The images of a batch that the device decodes; the worker decodes the others.

    Attributes:
        interpolations: filter of each view.
        images: how each is decoded.
        files: bytes of each, uint8 (num_bytes,).
    """

    def __init__(self, interpolations: Sequence[str]) -> None:
        """Begin without images."""
        self.interpolations = interpolations
        self.images: list[EncodedImage] = []
        self.files: list[torch.Tensor] = []

    def __reduce__(self) -> tuple:
        # One tensor in shared memory: sending the address of each would take longer than copying them.
        data = torch.cat(self.files) if self.files else torch.empty(0, dtype=torch.uint8)
        return _received, (self.interpolations, self.images, data, list(map(len, self.files)))

    def add(self, position: int, image: LazyImage, crops: Sequence[CropParams]) -> bool:
        """Add an image and return True, if it is of a kind that the device can decode."""
        if not isinstance(image, LazyJpegImage) or not all(map(_is_usual_crop, crops)):
            return False
        data, header, orientation = image.source
        is_usual = not header.has_several_scans and (header.components, header.sampling) in _USUAL_COLORS
        is_small = len(data) <= _MAX_FILE_BYTES and header.width * header.height <= _MAX_PIXELS
        # nvJPEG may not report damage.
        if not (is_usual and is_small and seems_intact(data, header.scan_start)) or _ADOBE_RGB.search(data):
            return False
        self.images.append(EncodedImage(position, (3, header.height, header.width), orientation, crops))
        self.files.append(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return True

    def decode_into(self, views: Sequence[torch.Tensor]) -> list[int]:
        """Write the crops into uint8 batches (batch, size, size, 3) on the device; flips are left to the caller.

        Returns:
            Positions of images that the device cannot decode; they may have been changed.
        """
        refused = []
        for group in self._groups():
            decoded = _decode_or_refuse(self.files[group], views[0].device)
            for image, pixels in zip(self.images[group], decoded, strict=True):
                if pixels is None or pixels.shape != image.shape:
                    refused.append(image.position)
                    continue
                pixels = _upright(pixels, image.orientation)
                for crop, view, interpolation in zip(image.crops, views, self.interpolations, strict=True):
                    _crop_resize(pixels, crop, view[image.position], interpolation)
        return refused

    def _groups(self) -> Iterator[slice]:
        """Yield the images in groups whose pixels take a limited memory."""
        first = num_pixels = 0
        for number, image in enumerate(self.images):
            _, height, width = image.shape
            if num_pixels and num_pixels + height * width > _MAX_PIXELS:
                yield slice(first, number)
                first, num_pixels = number, 0
            num_pixels += height * width
        if num_pixels:
            yield slice(first, len(self.images))


def decoder_fault(device: torch.device) -> str:
    """Return the reason why JPEG files cannot be decoded on a device; '' if they can."""
    file = bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    try:
        _decode([torch.frombuffer(file, dtype=torch.uint8)], device)
    except (ImportError, RuntimeError) as error:
        return failure_reason(error)
    return ''


def _received(
    interpolations: Sequence[str], images: list[EncodedImage], data: torch.Tensor, lengths: list[int]
) -> EncodedImages:
    encoded = EncodedImages(interpolations)
    encoded.images, encoded.files = images, list(data.split(lengths))
    return encoded


def _is_usual_crop(crop: CropParams) -> bool:
    left, top, right, bottom = crop.box
    scale = min(crop.width / (right - left), crop.height / (bottom - top))
    return has_whole_box(crop) and min(crop.width, crop.height) >= LEAST_SIDE and scale >= _LEAST_SCALE


def _decode_or_refuse(files: list[torch.Tensor], device: torch.device) -> list[torch.Tensor | None]:
    """Return the pixels of each file, uint8 (3, height, width); None where it cannot be decoded."""
    try:
        return list(_decode(files, device))
    except RuntimeError:  # there are no partial results
        return [None] if len(files) == 1 else [pixels for one in files for pixels in _decode_or_refuse([one], device)]


def _decode(files: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    # Here, since the import takes as long as all others, and workers don't need it.
    from torchvision.io import decode_jpeg

    if device.type == 'cuda':
        # nvJPEG writes on another stream, into memory that pending work of this stream may still read:
        # https://github.com/pytorch/vision/pull/9606
        torch.cuda.current_stream(device).synchronize()
    with no_warnings():  # torchvision 0.29 recommends torchcodec in each call
        return decode_jpeg(files, 'RGB', device)


def _upright(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Undo the camera's rotation of (3, height, width), as for the pixels of the CPU."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    axes = [axis for axis, turned in ((2, (2, 3, 6, 7)), (1, (3, 4, 7, 8))) if orientation in turned]
    return pixels.flip(axes) if axes else pixels


def _crop_resize(pixels: torch.Tensor, crop: CropParams, canvas: torch.Tensor, interpolation: str) -> None:
    """Write a crop of (3, height, width) into the canvas, (size, size, 3), both uint8."""
    left, top, right, bottom = map(int, crop.box)
    part, size = pixels[:, top:bottom, left:right], (crop.height, crop.width)
    if part.shape[1:] != size:
        resized = interpolate(part[None].float(), size, mode=interpolation, antialias=True)[0]
        part = resized.round_().clamp_(0, 255).to(torch.uint8)
    paste(part.permute(1, 2, 0), crop, canvas)
