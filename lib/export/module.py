"""The module to export: images -> logits and features, optionally with the normalization."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lib.model import Recognizer

OUTPUTS = ('logits', 'features')


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing from an image to the input of the backbone.

    Attributes:
        size: width and height of the input in pixels.
        crop_ratio: the shorter side is resized to size / crop_ratio, then the center is cropped.
        mean, std: per channel, for pixel values from 0 to 1.
        bgr: the channels are reversed before normalization.
        inside: reversal and normalization are part of the exported module.
        interpolation: antialiased filter of the resize, bilinear or bicubic.
    """

    size: int
    crop_ratio: float
    mean: Sequence[float]
    std: Sequence[float]
    bgr: bool
    inside: bool
    interpolation: str = 'bilinear'

    def example(self, batch: int) -> torch.Tensor:
        """Return an input of zeros for a batch size."""
        if self.inside:
            return torch.zeros(batch, self.size, self.size, 3, dtype=torch.uint8)
        return torch.zeros(batch, 3, self.size, self.size)

    def describe(self) -> dict[str, Any]:
        """Return the preprocessing as JSON values, for the metadata of an exported file."""
        shape = ['batch', self.size, self.size, 3] if self.inside else ['batch', 3, self.size, self.size]
        order = 'BGR' if self.bgr else 'RGB'
        return {
            'input': {'name': 'images', 'dtype': 'uint8' if self.inside else 'float32', 'shape': shape},
            'resize_short_side': int(self.size / self.crop_ratio),
            'center_crop': self.size,
            'interpolation': f'{self.interpolation}, antialiased',
            'channel_order': 'RGB' if self.inside else order,
            'normalized_inside': self.inside,
            'mean': list(self.mean),
            'std': list(self.std),
        }


class ExportedModel(nn.Module):
    """A recognizer in eval mode: `images` -> logits (batch, num_classes) and features (batch, num_features), float32.

    Images are uint8 RGB (batch, size, size, 3) if the normalization is inside, else float32 (batch, 3, size, size).
    """

    input_scale: torch.Tensor
    input_shift: torch.Tensor

    def __init__(self, model: Recognizer, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.backbone, self.classifier = model.extractor, model.classifier
        self.inside, self.bgr = preprocessing.inside, preprocessing.bgr
        scale = torch.tensor([1 / (255 * std) for std in preprocessing.std])
        shift = torch.tensor([-mean / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)])
        self.register_buffer('input_scale', scale.view(1, 3, 1, 1))
        self.register_buffer('input_shift', shift.view(1, 3, 1, 1))
        self.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.inside:
            if self.bgr:
                images = images.flip(3)
            images = images.permute(0, 3, 1, 2).float() * self.input_scale + self.input_shift
        features = self.backbone(images)
        return self.classifier(features), features


def fuse_linear_norms(backbone: nn.Module) -> None:
    """Replace linear layers with BatchNorm by plain ones: those of LeViT, whose int8 form OpenVINO cannot compile."""
    from timm.models.levit import LinearNorm  # imported here: see lib/backbone/create.py

    for parent in list(backbone.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LinearNorm):
                setattr(parent, name, child.fuse())
