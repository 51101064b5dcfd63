"""LOSS in the config -> the loss."""

from collections.abc import Callable

import numpy as np
from torch import nn
from yacs.config import CfgNode

from lib.loss.balanced_softmax import BalancedSoftmax
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.focal import Focal

LOSSES: dict[str, Callable[[CfgNode, np.ndarray], nn.Module]] = {
    'cross_entropy': lambda loss, counts: CrossEntropy(label_smoothing=loss.LABEL_SMOOTHING),
    'focal': lambda loss, counts: Focal(gamma=loss.GAMMA),
    'balanced_softmax': lambda loss, counts: BalancedSoftmax(class_counts=counts),
}


def build_loss(cfg: CfgNode, class_counts: np.ndarray) -> nn.Module:
    """Return the loss; `class_counts` (num_classes,) are the training images a class after HEAD_CAP."""
    return LOSSES[cfg.LOSS.TYPE](cfg.LOSS, class_counts)
