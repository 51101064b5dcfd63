"""Class-dependent temperatures (CDT)."""

import numpy as np
import torch

from lib.loss.adjusted import AdjustedCrossEntropy
from lib.loss.logits import checked_counts


def scale_by_share(counts: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return (n_c / n_max)^gamma, float64 (num_classes,); 1 with gamma 0, also where n_c is 0."""
    return (counts / counts.max()) ** gamma


def without_empty(counts: torch.Tensor, gamma: float, shift: torch.Tensor) -> torch.Tensor:
    """Return the shift, -inf for classes whose temperature is infinite: those without images, unless gamma is 0."""
    return shift.masked_fill(counts == 0, -torch.inf) if gamma else shift


class ClassDependentTemperatures(AdjustedCrossEntropy):
    """Cross entropy with class-dependent temperatures, L = -ln softmax(z / a)_y, a_c = (n_max / n_c)^gamma
    (CDT: Ye et al., arXiv 2001.01385, 2020, eqs. 4 and 5).

    In training only: predictions take the logits as they are. `class_counts` (num_classes,) is n. A class without
    images is left out of the softmax, and as a label it has loss 0. gamma 0 is cross entropy.
    """

    def __init__(self, class_counts: np.ndarray | torch.Tensor, gamma: float) -> None:
        counts = checked_counts(class_counts)
        shift = without_empty(counts, gamma, torch.zeros_like(counts))
        super().__init__(scale_by_share(counts, gamma), shift if shift.any() else None)
