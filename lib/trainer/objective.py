"""What a step minimises: the loss, and maybe a second one beside it.

Second losses beside the first: each is an Auxiliary of an Objective. None of them is saved.
"""

from typing import Protocol

import torch
from torch import nn

from lib.loss.balanced_contrastive import BalancedContrastive
from lib.loss.distillation import Distillation
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.trainer.forward import Head, LossOutput, LossScale, ModelOutput, WholeHead


class AuxiliaryTerm(Protocol):
    """A second loss, the mean over `images` of what the model made of them."""

    def __call__(self, outputs: ModelOutput, targets: Targets, images: torch.Tensor) -> torch.Tensor: ...


class Objective(nn.Module):
    """loss_weight * loss + auxiliary_weight * auxiliary, a scalar.

    Args:
        loss: of single labels, averaged.
        head: computes it; None: of all logits.
    """

    def __init__(
        self,
        loss: WeightedLoss,
        auxiliary: AuxiliaryTerm | None = None,
        *,
        loss_weight: float = 1.0,
        auxiliary_weight: float = 0.0,
        head: Head | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.classifier_shard = WholeHead(loss) if head is None else head
        self.auxiliary = auxiliary
        self.loss_weight, self.auxiliary_weight = loss_weight, auxiliary_weight

    def set_epoch(self, epoch: int) -> None:
        """Tell the parts that change over the run which epoch (from 0) begins."""
        self.loss.set_epoch(epoch)

    def normalizer(self, targets: Targets) -> torch.Tensor:
        """Return what the losses of these targets are divided by; of a batch in parts, the sum over the parts."""
        return self.loss.normalizer(targets)

    def forward(self, outputs: ModelOutput, targets: Targets, images: torch.Tensor, share: LossScale) -> LossOutput:
        """Return what a part of a batch adds to the objective; `share` says which part it is."""
        loss, predicted = self.classifier_shard(outputs, targets, share)
        total = self.loss_weight * loss
        if self.auxiliary is not None:
            second = self.auxiliary(outputs, targets, images)
            total = total + self.auxiliary_weight * share.fraction * second
        return LossOutput(total, predicted)


class ContrastTerm:
    """Compares the images of a batch with each other and with the prototypes of all classes.

    Args:
        model: with a projector; its prototypes are made once a step, of the parameters themselves, so that several
            GPUs add to one gradient.
        loss: of embeddings, prototypes and labels.
    """

    def __init__(self, model: Recognizer, loss: BalancedContrastive) -> None:
        self._model, self._loss = model, loss

    def __call__(self, outputs: ModelOutput, targets: Targets, images: torch.Tensor) -> torch.Tensor:
        return self._loss(outputs.embeddings, self._model.prototypes(), targets.hard)


class DistillTerm:
    """Asks a teacher about the same images. The teacher is frozen, in eval mode, and no part of the model.

    Args:
        teacher: images -> logits (batch, num_classes), on the device of the images.
        loss: of the student's logits and the teacher's.
    """

    def __init__(self, teacher: nn.Module, loss: Distillation) -> None:
        # This is no module, so whoever puts the objective into train mode does not reach the teacher.
        self._teacher, self._loss = teacher.requires_grad_(False).eval(), loss

    def __call__(self, outputs: ModelOutput, targets: Targets, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = self._teacher(images)
        return self._loss(outputs.logits, logits)
