"""From features to a loss: with all logits at hand, or with classifier and loss computed together."""

from typing import NamedTuple, Protocol

import torch
from torch import nn

from lib.loss.targets import Targets
from lib.loss.weighted import AverageLoss
from lib.trainer.forward import Outputs


class Share(NamedTuple):
    """What a part of a step's batch is to the whole.

    Attributes:
        divisor: what the losses of the whole batch, over all ranks, are divided by; a scalar.
        fraction: of its images.
        seed: of what is random in the head at this step; the same on every rank.
        sizes: how many images each rank has in this part.
    """

    divisor: torch.Tensor
    fraction: float
    seed: int
    sizes: tuple[int, ...]


class Computed(NamedTuple):
    """What came of a part of a batch.

    Attributes:
        loss: scalar; those of all parts and ranks add up to the loss of the batch.
        predicted: (n,) int64 class of the largest logit.
    """

    loss: torch.Tensor
    predicted: torch.Tensor


class Head(Protocol):
    """What makes a loss of outputs."""

    def __call__(self, outputs: Outputs, targets: Targets, share: Share) -> Computed: ...


class WholeHead(nn.Module):
    """The logits of all classes are there: they came with the outputs, from as many GPUs as there are."""

    def __init__(self, loss: AverageLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Outputs, targets: Targets, share: Share) -> Computed:
        total = self.loss.total(outputs.logits, targets, outputs.features)
        return Computed(total / share.divisor, outputs.logits.detach().argmax(dim=1))
