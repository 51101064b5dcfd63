"""The forward pass of a training step: images to features and logits, then to the loss."""

from typing import NamedTuple, Protocol

import torch
from torch import nn

from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.trainer.mixing.stages import MixedStages
from lib.trainer.samples import margins_of


class ModelOutput(NamedTuple):
    """The outputs of a model that losses use, all float32.

    Attributes:
        logits: (batch, num_classes); None where a head computes classifier and loss together.
        features: (batch, num_features).
        embeddings: (batch, width), L2-normalized; None for a model without a projector.
    """

    logits: torch.Tensor | None
    features: torch.Tensor
    embeddings: torch.Tensor | None


class TrainingForward(nn.Module):
    """The forward pass of a Recognizer whose backbone can mix pairs after a stage, in one call for several GPUs.

    Args:
        model: trained.
        stages: stages of its backbone, for manifold mixup; None: no features are mixed.
        classifies: False: the head computes the logits.
        takes_features: it gets outputs of the backbone in place of images, so the backbone does not run.
    """

    def __init__(
        self,
        model: Recognizer,
        stages: MixedStages | None = None,
        *,
        classifies: bool = True,
        takes_features: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self._stages = stages
        self._classifies = classifies
        self._takes_features = takes_features

    def forward(self, images: torch.Tensor, lam: torch.Tensor | None = None, stage: int = 0) -> ModelOutput:
        """Return the outputs of images (batch, 3, H, W); features after `stage` are mixed by `lam` (batch,)."""
        if self._takes_features:
            features = self.model.from_backbone(images)
        elif stage:
            assert self._stages is not None
            assert lam is not None
            with self._stages.mixing(stage, lam):
                features = self.model.features(images)
        else:
            features = self.model.features(images)
        embeddings = self.model.embed(features) if self.model.projector is not None else None
        logits = self.model.classify(features) if self._classifies else None
        return ModelOutput(logits, features, embeddings)


class LossScale(NamedTuple):
    """How a micro-batch contributes to the loss of its batch.

    Attributes:
        normalizer: scalar tensor, denominator of the loss of the whole batch over all ranks.
        fraction: fraction of the batch's images that are in this micro-batch of this rank.
        seed: for random choices of the head in this step; the same on every rank.
        sizes: images of each rank in this micro-batch.
    """

    normalizer: torch.Tensor
    fraction: float
    seed: int
    sizes: tuple[int, ...]


class LossOutput(NamedTuple):
    """The loss of a micro-batch.

    Attributes:
        loss: scalar; the sum over all micro-batches and ranks is the loss of the batch.
        predicted: (n,) int64 class of the largest logit.
        margins: (n,) of the labels, see lib.trainer.samples.margins_of; None: not computed.
    """

    loss: torch.Tensor
    predicted: torch.Tensor
    margins: torch.Tensor | None = None


class Head(Protocol):
    """Computes the loss from the outputs of the model."""

    def __call__(self, outputs: ModelOutput, targets: Targets, scale: LossScale) -> LossOutput: ...


class WholeHead(nn.Module):
    """Head for outputs that contain the logits of all classes.

    Args:
        loss: weighted loss of the labels.
        with_margins: compute the margins of the labels, too.
    """

    def __init__(self, loss: WeightedLoss, *, with_margins: bool = False) -> None:
        super().__init__()
        self.loss = loss
        self._with_margins = with_margins

    def forward(self, outputs: ModelOutput, targets: Targets, scale: LossScale) -> LossOutput:
        assert outputs.logits is not None
        total = self.loss.total(outputs.logits, targets, outputs.features)
        margins = margins_of(outputs.logits, targets.hard) if self._with_margins else None
        return LossOutput(total / scale.normalizer, outputs.logits.detach().argmax(dim=1), margins)
