"""Class-dependent temperatures (CDT)."""

import numpy as np
import torch

from lib.loss.cross_entropy import AdjustedCrossEntropy
from lib.loss.logits import checked_counts


def inverse_temperature(counts: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return 1 / a_c = (n_c / n_max)^gamma, float64 (num_classes,); 1 if gamma is 0, also where n_c is 0."""
    return (counts / counts.max()) ** gamma


def exclude_empty(counts: torch.Tensor, gamma: float, shift: torch.Tensor) -> torch.Tensor:
    """Return the shift with -inf for classes of infinite temperature: those without images, unless gamma is 0."""
    return shift.masked_fill(counts == 0, -torch.inf) if gamma else shift


class ClassDependentTemperatures(AdjustedCrossEntropy):
    """Cross entropy with class-dependent temperatures, L = -ln softmax(z / a)_y, a_c = (n_max / n_c)^gamma
    (CDT: Ye et al., arXiv 2001.01385, 2020, eqs. 4 and 5).

    Used in training only: predictions use the unscaled logits. `class_counts` (num_classes,) is n. Classes without
    images are left out of the softmax, and as labels they have loss 0. gamma 0 is cross entropy.
    """

    def __init__(self, class_counts: np.ndarray | torch.Tensor, gamma: float) -> None:
        counts = checked_counts(class_counts)
        shift = exclude_empty(counts, gamma, torch.zeros_like(counts))
        super().__init__(inverse_temperature(counts, gamma), shift if shift.any() else None)
