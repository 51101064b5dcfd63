"""LOSS in the config -> the loss."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from lib.loss.arcface import ArcFace
from lib.loss.average import AverageLoss
from lib.loss.balanced_softmax import BalancedSoftmax
from lib.loss.class_dependent_temperatures import ClassDependentTemperatures
from lib.loss.class_weights import effective_number, inverse_frequency
from lib.loss.cosface import CosFace
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.focal import Focal
from lib.loss.generalized_cross_entropy import GeneralizedCrossEntropy
from lib.loss.influence_balanced import InfluenceBalanced
from lib.loss.label_aware_smoothing import LabelAwareSmoothing
from lib.loss.ldam import LDAM
from lib.loss.logit_adjustment import LogitAdjustment
from lib.loss.seesaw import Seesaw
from lib.loss.sigmoid_focal import SigmoidFocal
from lib.loss.softmax_equalization import SoftmaxEqualization
from lib.loss.symmetric_cross_entropy import SymmetricCrossEntropy
from lib.loss.vector_scaling import VectorScaling

# LOSS, training images a class, scale of the cosine classifier (1 with a linear one) -> the loss of single labels.
LOSSES: dict[str, Callable[[CfgNode, np.ndarray, float], nn.Module]] = {
    'cross_entropy': lambda loss, counts, scale: CrossEntropy(loss.LABEL_SMOOTHING),
    'focal': lambda loss, counts, scale: Focal(_or_default(loss.GAMMA, 2.0)),
    'sigmoid_focal': lambda loss, counts, scale: SigmoidFocal(_or_default(loss.GAMMA, 2.0)),
    'balanced_softmax': lambda loss, counts, scale: BalancedSoftmax(counts),
    'logit_adjustment': lambda loss, counts, scale: LogitAdjustment(counts, loss.TAU),
    'vector_scaling': lambda loss, counts, scale: VectorScaling(counts, _or_default(loss.GAMMA, 0.1), loss.TAU),
    'class_dependent_temperatures': lambda loss, counts, scale: ClassDependentTemperatures(
        counts, _or_default(loss.GAMMA, 0.1)
    ),
    'ldam': lambda loss, counts, scale: LDAM(counts, _or_default(loss.MARGIN, 0.5), scale),
    'softmax_equalization': lambda loss, counts, scale: SoftmaxEqualization(
        counts, loss.TAIL_SHARE, loss.SPARE_PROBABILITY
    ),
    'label_aware_smoothing': lambda loss, counts, scale: LabelAwareSmoothing(
        counts, loss.SMOOTHING_HEAD, loss.SMOOTHING_TAIL, loss.SMOOTHING_SHAPE
    ),
    'influence_balanced': lambda loss, counts, scale: InfluenceBalanced(
        differentiated=loss.INFLUENCE == 'differentiated'
    ),
    'seesaw': lambda loss, counts, scale: Seesaw(counts, loss.MITIGATION, loss.COMPENSATION),
    'generalized_cross_entropy': lambda loss, counts, scale: GeneralizedCrossEntropy(loss.Q),
    'symmetric_cross_entropy': lambda loss, counts, scale: SymmetricCrossEntropy(
        loss.FORWARD_WEIGHT, loss.REVERSE_WEIGHT
    ),
    'arcface': lambda loss, counts, scale: ArcFace(_or_default(loss.MARGIN, 0.5), scale),
    'cosface': lambda loss, counts, scale: CosFace(_or_default(loss.MARGIN, 0.35), scale),
}

CLASS_WEIGHTS: dict[str, Callable[[CfgNode, np.ndarray], torch.Tensor | None]] = {
    '': lambda loss, counts: None,
    'effective_number': lambda loss, counts: effective_number(counts, loss.BETA),
    'inverse_frequency': lambda loss, counts: inverse_frequency(counts, loss.EXPONENT),
}


def build_loss(cfg: CfgNode, class_counts: np.ndarray) -> AverageLoss:
    """Return the loss; `class_counts` (num_classes,) are the training images a class after HEAD_CAP."""
    loss = cfg.LOSS
    scale = cfg.MODEL.COSINE_SCALE if cfg.MODEL.CLASSIFIER in ('FCNorm', 'cosine') else 1.0
    from_epoch = loss.REWEIGHT_EPOCH
    return AverageLoss(
        LOSSES[loss.TYPE](loss, class_counts, scale),
        torch.as_tensor(class_counts),
        CLASS_WEIGHTS[loss.CLASS_WEIGHTS](loss, class_counts),
        from_epoch=from_epoch if from_epoch >= 0 else round(0.8 * cfg.TRAIN.MAX_EPOCH),
        over_weights=loss.REDUCTION == 'weighted_mean',
    )


def _or_default(value: float, default: float) -> float:
    """Negative: the method's own."""
    return value if value >= 0 else default
