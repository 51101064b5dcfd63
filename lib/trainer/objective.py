"""What a step minimises: the loss, and maybe a second one beside it."""

from typing import Protocol

import torch
from torch import nn

from lib.loss.average import AverageLoss
from lib.loss.targets import Targets
from lib.trainer.forward import Outputs


class Auxiliary(Protocol):
    """A second loss, of what the model made of `images`."""

    def __call__(self, outputs: Outputs, targets: Targets, images: torch.Tensor) -> torch.Tensor: ...


class Objective(nn.Module):
    """loss_weight * loss + auxiliary_weight * auxiliary, a scalar."""

    def __init__(
        self,
        loss: AverageLoss,
        auxiliary: Auxiliary | None = None,
        *,
        loss_weight: float = 1.0,
        auxiliary_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.auxiliary = auxiliary
        self.loss_weight, self.auxiliary_weight = loss_weight, auxiliary_weight

    def set_epoch(self, epoch: int) -> None:
        """Tell the parts that change over the run which epoch (from 0) begins."""
        self.loss.set_epoch(epoch)

    def forward(self, outputs: Outputs, targets: Targets, images: torch.Tensor) -> torch.Tensor:
        total = self.loss_weight * self.loss(outputs.logits, targets, outputs.features)
        if self.auxiliary is not None:
            total = total + self.auxiliary_weight * self.auxiliary(outputs, targets, images)
        return total
