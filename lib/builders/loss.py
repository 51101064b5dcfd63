"""Build the loss from the LOSS section of the config."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from lib.config.defaults import Config
from lib.config.keys.loss import LossKeys
from lib.loss.arcface import ArcFace, margins_by_size
from lib.loss.balanced_softmax import BalancedSoftmax
from lib.loss.class_dependent_temperatures import ClassDependentTemperatures
from lib.loss.cosface import CosFace
from lib.loss.cross_entropy import CrossEntropy
from lib.loss.focal import Focal, SigmoidFocal
from lib.loss.generalized_cross_entropy import GeneralizedCrossEntropy
from lib.loss.influence_balanced import InfluenceBalanced
from lib.loss.label_aware_smoothing import LabelAwareSmoothing
from lib.loss.ldam import LDAM
from lib.loss.logit_adjustment import LogitAdjustment
from lib.loss.seesaw import Seesaw
from lib.loss.softmax_equalization import SoftmaxEqualization
from lib.loss.symmetric_cross_entropy import SymmetricCrossEntropy
from lib.loss.vector_scaling import VectorScaling
from lib.loss.weighted import WeightedLoss, effective_number, inverse_frequency

_DEFAULT_START = 0.8  # as a fraction of the run: epoch 160 of 200 (Cao et al., NeurIPS 2019)


def deferred_start_epoch(epoch: int, max_epoch: int) -> int:
    """Return the first epoch (from 0) of a deferred method: `epoch`, or 0.8 * max_epoch if it is negative.

    The default leaves at least the last epoch to the method.
    """
    return epoch if epoch >= 0 else max(0, min(round(_DEFAULT_START * max_epoch), max_epoch - 1))


# Config, training images per class, scale of the cosine classifier (1 for a linear one) -> the per-label loss.
LOSSES: dict[str, Callable[[Config, np.ndarray, float], nn.Module]] = {
    'cross_entropy': lambda cfg, counts, scale: CrossEntropy(cfg.LOSS.LABEL_SMOOTHING),
    'focal': lambda cfg, counts, scale: Focal(_or_default(cfg.LOSS.GAMMA, 2.0)),
    'sigmoid_focal': lambda cfg, counts, scale: SigmoidFocal(_or_default(cfg.LOSS.GAMMA, 2.0)),
    'balanced_softmax': lambda cfg, counts, scale: BalancedSoftmax(counts),
    'logit_adjustment': lambda cfg, counts, scale: LogitAdjustment(counts, cfg.LOSS.TAU),
    'vector_scaling': lambda cfg, counts, scale: VectorScaling(counts, _or_default(cfg.LOSS.GAMMA, 0.1), cfg.LOSS.TAU),
    'class_dependent_temperatures': lambda cfg, counts, scale: ClassDependentTemperatures(
        counts, _or_default(cfg.LOSS.GAMMA, 0.1)
    ),
    'ldam': lambda cfg, counts, scale: LDAM(counts, _or_default(cfg.LOSS.MARGIN, 0.5), scale),
    'softmax_equalization': lambda cfg, counts, scale: SoftmaxEqualization(
        counts, cfg.LOSS.TAIL_SHARE, cfg.LOSS.SPARE_PROBABILITY
    ),
    'label_aware_smoothing': lambda cfg, counts, scale: LabelAwareSmoothing(
        counts, cfg.LOSS.SMOOTHING_HEAD, cfg.LOSS.SMOOTHING_TAIL, cfg.LOSS.SMOOTHING_SHAPE
    ),
    'influence_balanced': lambda cfg, counts, scale: InfluenceBalanced(
        differentiated=cfg.LOSS.INFLUENCE == 'differentiated', reweight_from_epoch=_reweight_epoch(cfg)
    ),
    'seesaw': lambda cfg, counts, scale: Seesaw(counts, cfg.LOSS.MITIGATION, cfg.LOSS.COMPENSATION),
    'generalized_cross_entropy': lambda cfg, counts, scale: GeneralizedCrossEntropy(cfg.LOSS.Q),
    'symmetric_cross_entropy': lambda cfg, counts, scale: SymmetricCrossEntropy(
        cfg.LOSS.FORWARD_WEIGHT, cfg.LOSS.REVERSE_WEIGHT
    ),
    'arcface': lambda cfg, counts, scale: ArcFace(_angular_margin(cfg.LOSS, counts), scale),
    'cosface': lambda cfg, counts, scale: CosFace(_or_default(cfg.LOSS.MARGIN, 0.35), scale),
}

CLASS_WEIGHTS: dict[str, Callable[[LossKeys, np.ndarray], torch.Tensor | None]] = {
    '': lambda loss, counts: None,
    'effective_number': lambda loss, counts: effective_number(counts, loss.BETA),
    'inverse_frequency': lambda loss, counts: inverse_frequency(counts, loss.EXPONENT),
}


def build_loss(cfg: Config, class_counts: np.ndarray) -> WeightedLoss:
    """Return the loss; `class_counts` (num_classes,) are the training images per class after HEAD_CAP."""
    loss = cfg.LOSS
    scale = cfg.MODEL.COSINE_SCALE if cfg.MODEL.CLASSIFIER in ('FCNorm', 'cosine') else 1.0
    return WeightedLoss(
        LOSSES[loss.TYPE](cfg, class_counts, scale),
        torch.as_tensor(class_counts),
        CLASS_WEIGHTS[loss.CLASS_WEIGHTS](loss, class_counts),
        reweight_from_epoch=_reweight_epoch(cfg),
        weighted_mean=loss.REDUCTION == 'weighted_mean',
    )


def _reweight_epoch(cfg: Config) -> int:
    return deferred_start_epoch(cfg.LOSS.REWEIGHT_EPOCH, cfg.TRAIN.MAX_EPOCH)


def _angular_margin(loss: LossKeys, counts: np.ndarray) -> float | torch.Tensor:
    margin = _or_default(loss.MARGIN, 0.5)
    return margin if loss.MARGIN_HEAD < 0 else margins_by_size(counts, margin, loss.MARGIN_HEAD)


def _or_default(value: float, default: float) -> float:
    """Return the value of a key, or the default of the method if it is negative."""
    return value if value >= 0 else default
