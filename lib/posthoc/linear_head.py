"""Linear classifiers on stored features, and learnable weight scaling (LWS: Kang et al., Decoupling, ICLR 2020)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from lib.dataset.features import Features
from lib.inference.run import logit_batch_size
from lib.metrics.predictions import Predictions, join_predictions, predictions_from_logits
from lib.posthoc.tau_sweep import NEVER

_STEPS, _BATCH, _RATE = 300, 256, 0.02


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier.

    Attributes:
        weight: (num_classes, num_features) float32.
        bias: (num_classes,) float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.weight)

    def logits(self, values: torch.Tensor) -> torch.Tensor:
        """Return the logits (batch, num_classes) of features (batch, num_features), float32."""
        return torch.nn.functional.linear(values, self.weight, self.bias)

    def shifted(self, shift: torch.Tensor) -> 'LinearHead':
        """Return the classifier with `shift`, (num_classes,), added to the logits; a class at -inf never wins."""
        shift = shift.to(self.bias.device)
        bias = (self.bias.double() + shift).where(shift.isfinite(), NEVER)
        return replace(self, bias=bias.float())

    def scaled(self, scale: torch.Tensor | float) -> 'LinearHead':
        """Return the classifier with its logits multiplied by a number, or by (num_classes,) factors."""
        if isinstance(scale, torch.Tensor):
            return LinearHead(self.weight * scale[:, None], self.bias * scale)
        return LinearHead(self.weight * scale, self.bias * scale)


@dataclass(frozen=True)
class GroupScaledHead(LinearHead):
    """A linear classifier whose logits are multiplied by the factor of the predicted class's group.

    Attributes:
        inverse: (num_groups,) float32 factors, 1 / T.
        group_of: (num_classes,) int64.
    """

    inverse: torch.Tensor
    group_of: torch.Tensor

    def logits(self, values: torch.Tensor) -> torch.Tensor:
        """Return the logits (batch, num_classes) of features (batch, num_features), float32."""
        plain = super().logits(values)
        return plain * self.inverse[self.group_of[plain.argmax(dim=1)]][:, None]


def logit_batches(
    head: LinearHead, features: Features, rows: np.ndarray | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield logits (batch, num_classes), labels and readable flags (batch,) of some rows, in their order.

    Batches are small enough for the memory of their logits to be bounded.
    """
    device, size = head.weight.device, logit_batch_size(head.num_classes)
    rows = np.arange(len(features)) if rows is None else np.asarray(rows)
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        values = torch.from_numpy(np.array(features.values[some])).to(device)
        labels, readable = torch.from_numpy(features.labels[some]), torch.from_numpy(features.readable[some])
        yield head.logits(values), labels.to(device), readable.to(device)


@torch.inference_mode()
def head_predictions(head: LinearHead, features: Features, rows: np.ndarray | None = None) -> Predictions:
    """Return the predictions of a classifier for some rows of features."""
    return join_predictions([predictions_from_logits(*batch) for batch in logit_batches(head, features, rows)])


def fit_scales(
    head: LinearHead, features: Features, rows: np.ndarray, *, seed: int = 0, num_steps: int = _STEPS
) -> torch.Tensor:
    """Fit a scale of the logits per class (LWS: Kang et al., ICLR 2020, eq. 6).

    Class-balanced sampling as in the paper: each draw takes a class, then one of its images; cross entropy; Adam on the
    logarithms of the scales, which keeps them above 0, with a cosine schedule down to 0. A class without images among
    the rows changes only through the loss of the others.

    Args:
        rows: labeled, readable ones count.
        seed: seed of the draws; equal seeds give equal scales on one device.

    Returns:
        (num_classes,) float32, on the classifier's device.

    Raises:
        ValueError: no image counts.
    """
    rows = rows[(features.labels[rows] >= 0) & features.readable[rows]]
    if not len(rows):
        raise ValueError('scales need at least one readable, labeled image')
    labels = features.labels[rows]
    order = np.argsort(labels, kind='stable')
    present, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    rng = np.random.default_rng(seed)
    device = head.weight.device
    logs = torch.zeros(head.num_classes, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        drawn = rng.integers(len(present), size=_BATCH)
        positions = first[drawn] + (rng.random(_BATCH) * sizes[drawn]).astype(np.int64)
        chosen = rows[order[positions]]
        values = torch.from_numpy(np.array(features.values[chosen])).to(device)
        with torch.no_grad():
            logits = head.logits(values)
        loss = torch.nn.functional.cross_entropy(
            logits * logs.exp(), torch.from_numpy(features.labels[chosen]).to(device)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return logs.detach().exp()
