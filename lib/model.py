"""The recogniser: a backbone and a classifier."""

from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import nn


class Recognizer(nn.Module):
    """Images (batch, 3, H, W) -> logits (batch, num_classes).

    Its parameters are `backbone.*`, `classifier.weight` and, where there is one, `classifier.bias`: the
    names of old checkpoints, so keep them. `train_dtype` and `eval_dtype` are what train and eval mode compute in
    under autocast; None is the parameters' own precision.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        *,
        train_dtype: torch.dtype | None = None,
        eval_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.train_dtype = train_dtype
        self.eval_dtype = eval_dtype
        self._frozen = False

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the float32 features (batch, num_features) of `images`."""
        with self._autocast(images.device):
            return self.backbone(images).float()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the float32 logits (batch, num_classes) of `images`."""
        return self.classify(self.features(images))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Return the float32 logits (batch, num_classes) of features (batch, num_features)."""
        with self._autocast(features.device):
            return self.classifier(features).float()

    def freeze_backbone(self) -> None:
        """Train the classifier alone: the backbone takes no gradient and stays in eval mode.

        That outlasts train(), keeps its BatchNorm statistics and switches its dropout off.
        """
        self._frozen = True
        self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self._frozen:
            self.backbone.eval()
        return self

    def _autocast(self, device: torch.device) -> AbstractContextManager:
        # Entered inside the methods, since DataParallel's replica threads do not inherit it from the caller.
        dtype = self.train_dtype if self.training else self.eval_dtype
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
