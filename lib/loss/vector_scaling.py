"""Vector scaling (VS)."""

import numpy as np
import torch

from lib.loss.class_dependent_temperatures import exclude_empty, inverse_temperature
from lib.loss.cross_entropy import AdjustedCrossEntropy
from lib.loss.logit_adjustment import shift_by_prior
from lib.loss.logits import checked_counts


class VectorScaling(AdjustedCrossEntropy):
    """Vector-scaling loss, L = -ln softmax(Delta z + iota)_y, Delta_c = (n_c / n_max)^gamma, iota_c = tau ln(n_c / N)
    (VS: Kini et al., NeurIPS 2021, eq. 2, parameters of section 5, without its class weights).

    `class_counts` (num_classes,) is n. Classes without images are left out of the softmax, and as labels they have loss
    0.
    gamma 0 is logit adjustment, tau 0 class-dependent temperatures, both 0 cross entropy.
    """

    def __init__(self, class_counts: np.ndarray | torch.Tensor, gamma: float, tau: float) -> None:
        counts = checked_counts(class_counts)
        shift = exclude_empty(counts, gamma, shift_by_prior(counts, tau))
        super().__init__(inverse_temperature(counts, gamma), shift)
