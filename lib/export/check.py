"""What was exported against PyTorch, on images."""

from collections.abc import Iterable

import numpy as np
import torch

from lib.export.formats import Run
from lib.export.module import Exported

TOLERANCE = 1e-4


@torch.inference_mode()
def largest_difference(model: Exported, run: Run, batches: Iterable[torch.Tensor]) -> float:
    """Return how far logits and features of what was exported are from PyTorch's, over all batches.

    Relative to the largest number of the batch, but to no less than 1, so that small outputs are held to 1e-4 as such.
    Infinite where not all that was exported gives is finite.
    """
    worst = 0.0
    for images in batches:
        for own, found in zip(model(images), run(images), strict=True):
            expected = own.numpy()
            if not np.isfinite(found).all():
                return float('inf')
            if found.shape != expected.shape:
                raise ValueError(f'{found.shape} was returned for {expected.shape}')
            scale = max(1.0, float(np.abs(expected).max()))
            worst = max(
                worst, float(np.abs(found - expected).max()) / scale, key=lambda x: np.inf if np.isnan(x) else x
            )
    return worst
