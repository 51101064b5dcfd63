"""Boxes of images: where they lie, and one image's box pasted into another."""

import numpy as np
import torch


def cut_boxes(shares: np.ndarray, places: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a box an image that leaves about its share, and the share that it leaves exactly.

    r_h = H sqrt(1 - l), r_w = W sqrt(1 - l), centre uniform (Yun et al., ICCV 2019, eq. 2), in whole pixels; what
    sticks out of the image is cut off.

    Args:
        shares: (batch,) l, from 0 to 1.
        places: (batch, 2) of the centre, from 0 to 1: down, right.

    Returns:
        (batch, 4) int32 top, bottom, left, right, ends not included; (batch,) float64 share of pixels outside.
    """
    size = np.array([height, width])
    sides = np.rint(np.sqrt(1 - shares)[:, None] * size)
    starts = np.floor(places * size) - sides // 2
    ends = np.minimum(starts + sides, size)
    starts = np.maximum(starts, 0)
    left_over = 1 - np.prod(ends - starts, axis=1) / size.prod()
    return np.stack([starts, ends], axis=2).reshape(-1, 4).astype(np.int32), left_over


def paste(images: torch.Tensor, others: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """Return `images` (batch, channels, H, W) with the pixels in their boxes (batch, 4) taken from `others`."""
    top, bottom, left, right = torch.from_numpy(boxes).to(images.device, non_blocking=True)[:, :, None].unbind(1)
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    in_rows = (rows >= top) & (rows < bottom)  # (batch, H)
    in_columns = (columns >= left) & (columns < right)  # (batch, W)
    return torch.where((in_rows[:, :, None] & in_columns[:, None, :])[:, None], others, images)
