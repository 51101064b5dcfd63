"""A view of a picture to pixels: decoded at the scale that it needs, resized once, straight into a batch."""

import numpy as np
import torch
from PIL import Image

from lib.dataset.lazy_image import LazyImage
from lib.dataset.transforms import CropParams

_LEAST_SIDE = 4  # pixels; torch takes the axes of smaller results for others


def crop_resize(picture: LazyImage, view: CropParams, canvas: np.ndarray) -> None:
    """Lay the view on `canvas`, uint8 (size, size, 3), and zeros around it; `view.flip` is left to the device.

    Raises:
        DecodeError: the picture's pixels are damaged.
    """
    pixels, reduction = picture.pixels(view.scale())
    if not _is_whole(view):
        _paste(_resized_exactly(pixels, reduction, view), view, canvas)
        return
    part = _part(pixels, reduction, view)
    if (view.height, view.width, view.left, view.top, view.frame) == (*canvas.shape[:2], 0, 0, None):
        resize(part, canvas)
        return
    resized = np.empty((view.height, view.width, 3), np.uint8)
    resize(part, resized)
    _paste(resized, view, canvas)


def resize(pixels: np.ndarray, out: np.ndarray) -> None:
    """Resize uint8 (height, width, 3) into `out` with the antialiased bilinear filter of Pillow and torchvision.

    Pillow's result within two levels, and hardly any pixel of a photo differs; at a third to a fifth of its time.
    """
    if pixels.shape == out.shape:
        out[:] = pixels
        return
    height, width = out.shape[:2]
    if min(height, width) < _LEAST_SIDE:
        out[:] = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        return
    # What torch.nn.functional.interpolate(antialias=True) calls; called so, the result needs no copy into the batch.
    torch._C._nn._upsample_bilinear2d_aa(_as_batch(pixels), (height, width), False, None, None, out=_as_batch(out))


def _as_batch(pixels: np.ndarray) -> torch.Tensor:
    """Return (1, 3, height, width) in the same memory; NumPy's views cost a third of torch's."""
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None])


def _is_whole(view: CropParams) -> bool:
    """Return whether the box has its edges between pixels."""
    left, top, right, bottom = view.box
    return left == int(left) and top == int(top) and right == int(right) and bottom == int(bottom)


def _part(pixels: np.ndarray, reduction: int, view: CropParams) -> np.ndarray:
    """Return the view's box; an edge that falls within a reduced pixel goes to the nearer side."""
    left, top, right, bottom = map(int, view.box)
    if reduction > 1:
        height, width = pixels.shape[:2]
        left, top = min(round(left / reduction), width - 1), min(round(top / reduction), height - 1)
        right, bottom = max(left + 1, round(right / reduction)), max(top + 1, round(bottom / reduction))
    part = pixels[top:bottom, left:right]
    return part if part.flags.writeable else part.copy()  # torch warns of memory that it may not write to


def _resized_exactly(pixels: np.ndarray, reduction: int, view: CropParams) -> np.ndarray:
    """Resize a box with edges within pixels, as Pillow can."""
    box = tuple(edge / reduction for edge in view.box)
    return np.asarray(Image.fromarray(pixels).resize((view.width, view.height), Image.Resampling.BILINEAR, box=box))


def _paste(pixels: np.ndarray, view: CropParams, canvas: np.ndarray) -> None:
    """Clear the canvas, and copy what of (view.height, view.width, 3) pixels falls on it and into the view's frame."""
    canvas[:] = 0
    left, top, right, bottom = view.frame or (0, 0, canvas.shape[1], canvas.shape[0])
    left, top = max(left, view.left), max(top, view.top)
    right, bottom = min(right, view.left + view.width), min(bottom, view.top + view.height)
    if right > left and bottom > top:
        inside = pixels[top - view.top : bottom - view.top, left - view.left : right - view.left]
        canvas[top:bottom, left:right] = inside
