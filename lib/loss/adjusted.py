"""The primitive of the prior-based losses: cross entropy on logits that are shifted class by class."""

import numpy as np
import torch
import torch.nn.functional as F

IGNORED = -100  # F.cross_entropy's own mark for labels that do not count


def log_prior(class_counts: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return ln(n_c / N) as float32 (num_classes,), -inf for a class without images.

    Raises ValueError if a count is negative, or all of them are zero.
    """
    counts = torch.as_tensor(class_counts).to(dtype=torch.float64, device='cpu')
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() == 0:
        raise ValueError('class_counts must be one count a class, none negative and not all zero')
    return (counts / counts.sum()).log().float()


def adjusted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, adjustment: torch.Tensor) -> torch.Tensor:
    """Return the mean over the batch of -ln softmax(z + a)_y.

    logits z: float32 (batch, num_classes); labels y: int64 (batch,); adjustment a: (num_classes,), where
    -inf takes a class out of the softmax. An image of such a class has no finite loss: it does not count,
    in sum or in number (a batch of nothing else gives 0). The labels are not read on the host.
    """
    counted = adjustment.isfinite()[labels]  # (batch,)
    labels = labels.masked_fill(~counted, IGNORED)
    # The sum over a count held at 1, since the mean over no label at all would be 0 / 0.
    total = F.cross_entropy(logits + adjustment, labels, ignore_index=IGNORED, reduction='sum')
    return total / counted.sum().clamp_min(1)
