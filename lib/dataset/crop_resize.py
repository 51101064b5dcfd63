"""Crop and resize: decodes an image at the scale that the crop needs and resizes it once, straight into a batch."""

from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from lib.dataset.lazy_image import LazyImage
from lib.dataset.transforms import CropParams

LEAST_SIDE = 4  # pixels; torch confuses the axes of smaller results
# The kernels behind torch.nn.functional.interpolate(antialias=True); called directly, they write into the batch without
# a copy. Their stubs in torch lack the argument `out`, hence Any.
_KERNELS: dict[str, Any] = {
    'bilinear': torch._C._nn._upsample_bilinear2d_aa,
    'bicubic': torch._C._nn._upsample_bicubic2d_aa,
}
Pixels = TypeVar('Pixels', np.ndarray, torch.Tensor)
_OF_PILLOW = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}


def crop_resize(
    image: LazyImage,
    params: CropParams,
    canvas: np.ndarray,
    interpolation: str = 'bilinear',
    *,
    is_only_crop: bool = False,
) -> None:
    """Write the crop into `canvas`, uint8 (size, size, 3), surrounded by zeros; `params.flip` is left to the device.

    Args:
        interpolation: filter, bilinear or bicubic.
        is_only_crop: no other crop of this image follows, so the pixels around this one need not be decoded.

    Raises:
        DecodeError: the image's pixels are damaged.
    """
    if not has_whole_box(params):
        pixels, reduction = image.pixels(params.scale())
        paste(_resize_exact_box(pixels, reduction, params, interpolation), params, canvas)
        return
    left, top, right, bottom = map(int, params.box)
    part = image.crop(params.scale(), (left, top, right, bottom), is_only_crop=is_only_crop)
    if not part.flags.writeable:
        part = part.copy()  # torch warns about read-only memory
    if (params.height, params.width, params.left, params.top, params.frame) == (*canvas.shape[:2], 0, 0, None):
        resize(part, canvas, interpolation)
        return
    resized = np.empty((params.height, params.width, 3), np.uint8)
    resize(part, resized, interpolation)
    paste(resized, params, canvas)


def resize(pixels: np.ndarray, out: np.ndarray, interpolation: str = 'bilinear') -> None:
    """Resize uint8 (height, width, 3) into `out` with the antialiased filter of Pillow and torchvision.

    The result differs from Pillow's by at most two levels (bicubic: four), for few pixels of a photo, in a third to a
    seventh of its time. Bicubic sharpens, and where one axis is enlarged and the other reduced, torch cuts values off
    at 0 and 255 in another order, which shows in noise.
    """
    if pixels.shape == out.shape:
        out[:] = pixels
        return
    height, width = out.shape[:2]
    if min(height, width) < LEAST_SIDE:
        out[:] = Image.fromarray(pixels).resize((width, height), _OF_PILLOW[interpolation])
        return
    _KERNELS[interpolation](_as_batch(pixels), (height, width), False, None, None, out=_as_batch(out))


def _as_batch(pixels: np.ndarray) -> torch.Tensor:
    """Return (1, 3, height, width) in the same memory; NumPy's views cost a third of torch's."""
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None])


def has_whole_box(params: CropParams) -> bool:
    """Return True if the edges of the box are between pixels."""
    left, top, right, bottom = params.box
    return left == int(left) and top == int(top) and right == int(right) and bottom == int(bottom)


def _resize_exact_box(pixels: np.ndarray, reduction: int, params: CropParams, interpolation: str) -> np.ndarray:
    """Resize a box with edges within pixels, by Pillow."""
    left, top, right, bottom = (edge / reduction for edge in params.box)
    size, box = (params.width, params.height), (left, top, right, bottom)
    return np.asarray(Image.fromarray(pixels).resize(size, _OF_PILLOW[interpolation], box=box))


def paste(pixels: Pixels, params: CropParams, canvas: Pixels) -> None:
    """Clear the canvas and copy those of (params.height, params.width, 3) pixels that fall into canvas and frame."""
    canvas[:] = 0
    left, top, right, bottom = map(int, params.frame or (0, 0, canvas.shape[1], canvas.shape[0]))
    left, top = max(left, params.left), max(top, params.top)
    right, bottom = min(right, params.left + params.width), min(bottom, params.top + params.height)
    if right > left and bottom > top:
        canvas[top:bottom, left:right] = pixels[
            top - params.top : bottom - params.top, left - params.left : right - params.left
        ]
