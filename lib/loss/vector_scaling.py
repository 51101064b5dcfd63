"""Vector scaling (VS)."""

import numpy as np
import torch

from lib.loss.adjusted import AdjustedCrossEntropy
from lib.loss.class_dependent_temperatures import scale_by_share, without_empty
from lib.loss.logit_adjustment import shift_by_prior
from lib.loss.logits import checked_counts


class VectorScaling(AdjustedCrossEntropy):
    """Vector-scaling loss, L = -ln softmax(Delta z + iota)_y, Delta_c = (n_c / n_max)^gamma, iota_c = tau ln(n_c / N)
    (VS: Kini et al., NeurIPS 2021, eq. 2, parameters of section 5, without its weights a class).

    `class_counts` (num_classes,) is n. A class without images is left out of the softmax, and as a label it has loss 0.
    gamma 0 is logit adjustment, tau 0 class-dependent temperatures, both 0 cross entropy.
    """

    def __init__(self, class_counts: np.ndarray | torch.Tensor, gamma: float, tau: float) -> None:
        counts = checked_counts(class_counts)
        shift = without_empty(counts, gamma, shift_by_prior(counts, tau))
        super().__init__(scale_by_share(counts, gamma), shift)
