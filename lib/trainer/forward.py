"""What a training step computes of a batch, in one call that can be spread over GPUs."""

from typing import NamedTuple

import torch
from torch import nn

from lib.model import Recognizer
from lib.trainer.mixing.stages import MixedStages


class Outputs(NamedTuple):
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

    def forward(self, images: torch.Tensor, shares: torch.Tensor | None = None, stage: int = 0) -> Outputs:
        """Return the outputs of `images`; with a stage, features are mixed there by `shares` (batch,)."""
        if stage:
            with self._stages.mixing(stage, shares):
                features = self.model.features(images)
        else:
            features = self.model.features(images)
        embeddings = self.model.embed(features) if self.model.projector is not None else None
        logits = self.model.classify(features) if self._classifies else None
        return Outputs(logits, features, embeddings)
