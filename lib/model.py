"""The recogniser: a backbone and a classifier."""

from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.classifier.cosine import Projector


class Recognizer(nn.Module):
    """Images (batch, 3, H, W) -> logits (batch, num_classes).

    Its parameters are `backbone.*`, `classifier.weight` and, where there is one, `classifier.bias`: the
    names of old checkpoints, so keep them. `train_dtype` and `eval_dtype` are what train and eval mode compute in
    under autocast; None is the parameters' own precision. `projector` is for losses that compare images; prediction
    does without it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        *,
        projector: Projector | None = None,
        train_dtype: torch.dtype | None = None,
        eval_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.projector = projector
        self.train_dtype = train_dtype
        self.eval_dtype = eval_dtype
        self._frozen = self._shifts_batchnorm = False

    @property
    def is_partial(self) -> bool:
        """Whether the classifier holds a part of the classes, and other ranks the others."""
        return len(self.classifier.classes) < self.classifier.num_classes

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the float32 features (batch, num_features) of `images`."""
        with self._autocast(images.device):
            return _wide(self.backbone(images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the float32 logits (batch, num_classes) of `images`."""
        return self.classify(self.features(images))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Return the float32 logits (batch, num_classes) of features (batch, num_features)."""
        with self._autocast(features.device):
            return _wide(self.classifier(features))

    def factors(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return x, weight and bias of which x @ weight.T + bias are the logits, in the precision of the mode."""
        dtype = self.train_dtype if self.training else self.eval_dtype
        factors = self.classifier.factors(features)
        return factors if dtype is None else tuple(part if part is None else part.to(dtype) for part in factors)

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Return the float32 embeddings (batch, width), of length 1, of features (batch, num_features)."""
        with self._autocast(features.device):
            return self.projector.embed(features)

    def prototypes(self) -> torch.Tensor:
        """Return the float32 prototypes (num_classes, width), of length 1, made of the classifier's rows."""
        weight = self.classifier.weight
        with self._autocast(weight.device):
            return self.projector.prototypes(weight)

    def freeze_backbone(self, *, shift_batchnorm: bool = False) -> None:
        """Train the classifier alone: the backbone takes no gradient and stays in eval mode.

        That outlasts train(), keeps its BatchNorm statistics and switches its dropout off.

        Args:
            shift_batchnorm: BatchNorm alone follows train(): it normalises by the batch, and its running statistics
                go over to the images that are seen (shift learning: MiSLAS, Zhong et al., CVPR 2021).
        """
        self._frozen, self._shifts_batchnorm = True, shift_batchnorm
        self.backbone.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self._frozen:
            self.backbone.eval()
            if self._shifts_batchnorm:
                for module in self.backbone.modules():
                    if isinstance(module, _BatchNorm):
                        module.train(mode)
        return self

    def _autocast(self, device: torch.device) -> AbstractContextManager:
        # Entered inside the methods, since DataParallel's replica threads do not inherit it from the caller.
        dtype = self.train_dtype if self.training else self.eval_dtype
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return it in float32, or float64 where the parameters are."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
