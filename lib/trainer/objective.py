"""The objective of training: the loss, and optionally an auxiliary loss beside it."""

from typing import Protocol

import torch
from torch import nn

from lib.distributed.gather import gather_features_replicated, gather_rows
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.loss.balanced_contrastive import BalancedContrastive
from lib.loss.distillation import Distillation
from lib.loss.metric import MetricLoss
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.trainer.forward import Head, LossOutput, LossScale, ModelOutput, WholeHead


class AuxiliaryTerm(Protocol):
    """An auxiliary loss: the mean over the images of a micro-batch on this rank."""

    def __call__(
        self, outputs: ModelOutput, targets: Targets, images: torch.Tensor, scale: LossScale
    ) -> torch.Tensor: ...


class Objective(nn.Module):
    """loss_weight * loss + auxiliary_weight * auxiliary, a scalar. Neither loss is part of the model's checkpoints.

    Args:
        loss: weighted loss of the labels.
        head: computes the loss from the model's outputs; None: from the logits of all classes, without margins.
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
        self.head: Head = WholeHead(loss) if head is None else head
        self.auxiliary = auxiliary
        self.loss_weight, self.auxiliary_weight = loss_weight, auxiliary_weight

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch (from 0) for losses that depend on it."""
        self.loss.set_epoch(epoch)

    def normalizer(self, targets: Targets) -> torch.Tensor:
        """Return the denominator of the loss of these targets; that of a batch is the sum over its micro-batches."""
        return self.loss.normalizer(targets)

    def forward(self, outputs: ModelOutput, targets: Targets, images: torch.Tensor, scale: LossScale) -> LossOutput:
        """Return the contribution of a micro-batch to the objective of its batch."""
        output = self.head(outputs, targets, scale)
        total = self.loss_weight * output.loss
        if self.auxiliary is not None:
            auxiliary = self.auxiliary(outputs, targets, images, scale)
            total = total + self.auxiliary_weight * scale.fraction * auxiliary
        return output._replace(loss=total)


class ContrastTerm:
    """Compares the images of a micro-batch with each other and with the prototypes of all classes.

    Args:
        model: with a projector. Its prototypes are computed in each step from the parameters themselves, so that the
            replicas on several GPUs add to one gradient.
        loss: loss of embeddings, prototypes and labels.
    """

    def __init__(self, model: Recognizer, loss: BalancedContrastive) -> None:
        self._model, self._loss = model, loss

    def __call__(self, outputs: ModelOutput, targets: Targets, images: torch.Tensor, scale: LossScale) -> torch.Tensor:
        return self._loss(outputs.embeddings, self._model.prototypes(), targets.hard)


class MetricTerm:
    """Compares the images of a batch, over all ranks, with each other.

    Args:
        loss: loss of features and labels.
        group: ranks that share the batch.
    """

    def __init__(self, loss: MetricLoss, group: ProcessGroup = SINGLE_PROCESS) -> None:
        self._loss, self._group = loss, group

    def __call__(self, outputs: ModelOutput, targets: Targets, images: torch.Tensor, scale: LossScale) -> torch.Tensor:
        features, labels, group = outputs.features, targets.hard, self._group
        if group.world_size == 1:
            return self._loss(features, labels)
        features = gather_features_replicated(features, scale.sizes, group)
        loss = self._loss(features, gather_rows(labels, scale.sizes, group))
        # Every rank has the loss of all images, which the objective multiplies by the rank's fraction of them.
        return loss * (sum(scale.sizes) / group.world_size / scale.sizes[group.rank])


class DistillTerm:
    """Compares the logits with those of a frozen teacher, in eval mode, for the same images.

    Args:
        teacher: images -> logits (batch, num_classes), on the device of the images.
        loss: loss of the student's logits and the teacher's.
    """

    def __init__(self, teacher: nn.Module, loss: Distillation) -> None:
        # This class is no nn.Module, so the train mode of the objective does not reach the teacher.
        self._teacher, self._loss = teacher.requires_grad_(False).eval(), loss

    def __call__(self, outputs: ModelOutput, targets: Targets, images: torch.Tensor, scale: LossScale) -> torch.Tensor:
        with torch.no_grad():
            logits = self._teacher(images)
        return self._loss(outputs.logits, logits)
