"""Balanced softmax."""

import numpy as np
import torch

from lib.loss.logit_adjustment import LogitAdjustment


class BalancedSoftmax(LogitAdjustment):
    """Balanced softmax, L = -ln(n_y e^{z_y} / sum_c n_c e^{z_c}) (Ren et al., NeurIPS 2020, eq. 4).

    `class_counts` (num_classes,): training images per class. Classes without images are left out of the softmax, and
    as labels they have loss 0. Equal counts are cross entropy.
    """

    def __init__(self, class_counts: np.ndarray | torch.Tensor) -> None:
        super().__init__(class_counts, tau=1.0)
