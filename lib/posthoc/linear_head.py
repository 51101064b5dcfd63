"""Linear classifiers on kept features: what post-hoc methods make, and what they answer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from lib.inference.features import Features, batch_of
from lib.metrics.predictions import Answers, answers_of, join_answers
from lib.posthoc.tau_sweep import NEVER


@dataclass(frozen=True)
class Head:
    """A linear classifier.

    Attributes:
        weight: (num_classes, num_features) float32.
        bias: (num_classes,) float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    @property
    def num_classes(self) -> int:
        """How many classes it tells apart."""
        return len(self.weight)

    def logits(self, values: torch.Tensor) -> torch.Tensor:
        """Return the logits (batch, num_classes) of features (batch, num_features), float32."""
        return torch.nn.functional.linear(values, self.weight, self.bias)

    def shifted(self, shift: torch.Tensor) -> 'Head':
        """Return it with (num_classes,) added to the logits; a class at -inf never wins."""
        shift = shift.to(self.bias.device)
        bias = (self.bias.double() + shift).where(shift.isfinite(), NEVER)
        return replace(self, bias=bias.float())

    def scaled(self, scale: torch.Tensor | float) -> 'Head':
        """Return it with its logits multiplied, by one number or one a class."""
        if isinstance(scale, torch.Tensor):
            return Head(self.weight * scale[:, None], self.bias * scale)
        return Head(self.weight * scale, self.bias * scale)


@dataclass(frozen=True)
class GroupScaled(Head):
    """A linear classifier whose logits are multiplied by what belongs to the group of the class that they predict.

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
    head: Head, features: Features, rows: np.ndarray | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield logits (batch, num_classes), labels and readable of some rows, in their order; few logits at a time."""
    device, size = head.weight.device, batch_of(head.num_classes)
    numbers = np.arange(len(features)) if rows is None else np.asarray(rows)
    for start in range(0, len(numbers), size):
        some = numbers[start : start + size]
        values = torch.from_numpy(np.array(features.values[some])).to(device)
        labels, readable = (torch.from_numpy(part[some]).to(device) for part in (features.labels, features.readable))
        yield head.logits(values), labels, readable


@torch.inference_mode()
def head_answers(head: Head, features: Features, rows: np.ndarray | None = None) -> Answers:
    """Return what a classifier answers to some rows of features."""
    return join_answers([answers_of(*batch) for batch in logit_batches(head, features, rows)])
