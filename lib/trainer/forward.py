"""What a training step computes of a batch, in one call that can be spread over GPUs.

From features to a loss: with all logits at hand, or with classifier and loss computed together.
"""

from typing import NamedTuple, Protocol

import torch
from torch import nn

from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.trainer.mixing.stages import MixedStages


class ModelOutput(NamedTuple):
    """What losses look at, all float32.

    Attributes:
        logits: (batch, num_classes); None where classifier and loss are computed together.
        features: (batch, num_features).
        embeddings: (batch, width) of length 1, of a model with a projector; else None.
    """

    logits: torch.Tensor | None
    features: torch.Tensor
    embeddings: torch.Tensor | None


class TrainingForward(nn.Module):
    """A recogniser whose backbone can mix pairs on the way.

    Args:
        model: is trained.
        stages: of its backbone, when features are mixed; None: never.
        classifies: False: logits are left to the head.
    """

    def __init__(self, model: Recognizer, stages: MixedStages | None = None, *, classifies: bool = True) -> None:
        super().__init__()
        self.model = model
        self._stages = stages
        self._classifies = classifies

    def forward(self, images: torch.Tensor, shares: torch.Tensor | None = None, stage: int = 0) -> ModelOutput:
        """Return the outputs of `images`; with a stage, features are mixed there by `shares` (batch,)."""
        if stage:
            with self._stages.mixing(stage, shares):
                features = self.model.features(images)
        else:
            features = self.model.features(images)
        embeddings = self.model.embed(features) if self.model.projector is not None else None
        logits = self.model.classify(features) if self._classifies else None
        return ModelOutput(logits, features, embeddings)


class LossScale(NamedTuple):
    """What a part of a step's batch is to the whole.

    Attributes:
        divisor: what the losses of the whole batch, over all ranks, are divided by; a scalar.
        fraction: of its images.
        seed: of what is random in the head at this step; the same on every rank.
        sizes: how many images each rank has in this part.
    """

    normalizer: torch.Tensor
    fraction: float
    seed: int
    sizes: tuple[int, ...]


class LossOutput(NamedTuple):
    """What came of a part of a batch.

    Attributes:
        loss: scalar; those of all parts and ranks add up to the loss of the batch.
        predicted: (n,) int64 class of the largest logit.
    """

    loss: torch.Tensor
    predicted: torch.Tensor


class Head(Protocol):
    """What makes a loss of outputs."""

    def __call__(self, outputs: ModelOutput, targets: Targets, share: LossScale) -> LossOutput: ...


class WholeHead(nn.Module):
    """The logits of all classes are there: they came with the outputs, from as many GPUs as there are."""

    def __init__(self, loss: WeightedLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: ModelOutput, targets: Targets, share: LossScale) -> LossOutput:
        total = self.loss.total(outputs.logits, targets, outputs.features)
        return LossOutput(total / share.normalizer, outputs.logits.detach().argmax(dim=1))
