"""The network as inference uses it: images to features, features to logits.

Every pass over a split, and every pass over cached features, takes an `Engine`. `EagerEngine` runs a Recognizer in
PyTorch; another implementation of the protocol (a compiled or exported network) takes its place without other changes.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from lib.model import Recognizer


class Engine(Protocol):
    """A network that computes features of images, and logits from features."""

    @property
    def device(self) -> torch.device:
        """The device of images, features and logits."""

    @property
    def num_features(self) -> int:
        """The width of the features that logits are computed from."""

    @property
    def num_classes(self) -> int:
        """The number of classes, over all ranks."""

    @property
    def classes(self) -> range:
        """The classes that logits() computes: a part of them where each rank holds a shard of the classifier."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the float32 features (batch, num_features) of images (batch, 3, H, W)."""

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the float32 logits (batch, len(classes)) of features (batch, num_features)."""

    def inference(self) -> AbstractContextManager[None]:
        """Return a context in which the network computes as in validation; on leaving, its mode is restored."""


@dataclass(frozen=True)
class EagerEngine:
    """A Recognizer, run by PyTorch operation by operation."""

    model: Recognizer

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.model.parameters()).device

    @property
    def num_features(self) -> int:
        """The width of the classifier's rows."""
        return self.model.classifier.weight.shape[1]

    @property
    def num_classes(self) -> int:
        """The number of classes, over all ranks."""
        return self.model.classifier.num_classes

    @property
    def classes(self) -> range:
        """The classes whose rows this rank holds."""
        return self.model.classifier.classes

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the float32 features (batch, num_features) of images (batch, 3, H, W)."""
        return self.model.features(images)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the float32 logits (batch, len(classes)) of features (batch, num_features)."""
        return self.model.classify(features)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Put the model into eval mode without gradients; on leaving, restore its mode."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(was_training)


@dataclass(frozen=True)
class HeadEngine(EagerEngine):
    """Embedding and classifier of a Recognizer, which gets stored outputs of the backbone in place of images."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features (batch, num_features) of outputs of the backbone."""
        return self.model.from_backbone(images)
