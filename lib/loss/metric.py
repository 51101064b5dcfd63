"""Losses of pairs and triplets of images, computed and mined by pytorch-metric-learning (requirements-search.txt).

The package is imported when a loss is built. Its miners wait for the device in every step.
"""

import importlib
from typing import Any

import torch
from torch import nn

_TRIPLET_MARGIN = 0.2  # Schroff et al., CVPR 2015


class MetricLoss(nn.Module):
    """A loss of the images of a batch compared with each other, by the pairs or triplets that a miner selects.

    Features (batch, num_features), which it normalizes to length 1, and labels int64 (batch,) -> a scalar, computed in
    float32 (float64 for float64 features) even under autocast; 0 where nothing is selected. Memory O(batch^2).

    Args:
        loss: loss of pytorch-metric-learning.
        miner: miner of pytorch-metric-learning; None: all pairs.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            features = features if features.dtype == torch.float64 else features.float()
            selected = None if self.miner is None else self.miner(features, labels)
            value: torch.Tensor = self.loss(features, labels, selected)
            return value


def batch_hard_triplet() -> MetricLoss:
    """Return the triplet loss [m + d(a, p) - d(a, n)]_+ of the hardest positive p and negative n of each image a.

    Batch hard mining (Hermans et al., arXiv:1703.07737, eq. 5), d the Euclidean distance of unit vectors, m = 0.2. The
    mean is over the triplets with a loss above 0.
    """
    loss = _module('losses').TripletMarginLoss(margin=_TRIPLET_MARGIN)
    return MetricLoss(loss, _module('miners').BatchHardMiner())


def multi_similarity() -> MetricLoss:
    """Return the multi-similarity loss (Wang et al., CVPR 2019, eq. 15), the mean over the batch of

        L_i = 1/a ln(1 + sum_{k in P_i} e^{-a (s_ik - l)}) + 1/b ln(1 + sum_{k in N_i} e^{b (s_ik - l)}),  s: cosines

    P_i are the images of the same class that are less similar than the most similar one of another class plus 0.1, N_i
    those of other classes that are more similar than the least similar one of the same class minus 0.1. As in its
    authors' code, a = 2, b = 50 and l = 0.5.
    """
    loss = _module('losses').MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    return MetricLoss(loss, _module('miners').MultiSimilarityMiner(epsilon=0.1))


def supervised_contrastive(temperature: float) -> MetricLoss:
    """Return the supervised contrastive loss (Khosla et al., NeurIPS 2020, eq. 2), averaged over images with positives:

        L_i = -1/|P_i| sum_{p in P_i} ln(e^{s_ip / T} / sum_{k != i} e^{s_ik / T}),  s: cosines, P_i: the same class

    Args:
        temperature: T.
    """
    return MetricLoss(_module('losses').SupConLoss(temperature=temperature))


def _module(name: str) -> Any:
    """Return a module of the package: losses or miners."""
    return importlib.import_module(f'pytorch_metric_learning.{name}')
