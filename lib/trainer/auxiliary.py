"""Second losses beside the first: each is an Auxiliary of an Objective. None of them is saved."""

import torch
from torch import nn

from lib.loss.balanced_contrastive import BalancedContrastive
from lib.loss.distillation import Distillation
from lib.loss.targets import Targets
from lib.model import Recognizer
from lib.trainer.forward import Outputs


class ContrastTerm:
    """Compares the images of a batch with each other and with the prototypes of all classes.

    Args:
        model: with a projector; its prototypes are made once a step, of the parameters themselves, so that several
            GPUs add to one gradient.
        loss: of embeddings, prototypes and labels.
    """

    def __init__(self, model: Recognizer, loss: BalancedContrastive) -> None:
        self._model, self._loss = model, loss

    def __call__(self, outputs: Outputs, targets: Targets, images: torch.Tensor) -> torch.Tensor:
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

    def __call__(self, outputs: Outputs, targets: Targets, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = self._teacher(images)
        return self._loss(outputs.logits, logits)
