"""What is exported of a recogniser: images in, logits and features out, the normalisation inside."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lib.model import Recognizer

OUTPUTS = ('logits', 'features')


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes what the backbone takes.

    Attributes:
        size: side of the input, pixels.
        crop_ratio: the shorter side is resized to size / crop_ratio, and the centre cut out.
        mean, std: of each channel, for images from 0 to 1.
        bgr: whether the channels are turned round before they are normalised.
        inside: whether turning and normalising are part of what is exported.
    """

    size: int
    crop_ratio: float
    mean: Sequence[float]
    std: Sequence[float]
    bgr: bool
    inside: bool

    def example(self, batch: int) -> torch.Tensor:
        """Return an input of zeros."""
        if self.inside:
            return torch.zeros(batch, self.size, self.size, 3, dtype=torch.uint8)
        return torch.zeros(batch, 3, self.size, self.size)

    def describe(self) -> dict[str, Any]:
        """Return it as plain values, in words where a program has to do it."""
        shape = ['batch', self.size, self.size, 3] if self.inside else ['batch', 3, self.size, self.size]
        order = 'BGR' if self.bgr else 'RGB'
        return {
            'input': {'name': 'images', 'dtype': 'uint8' if self.inside else 'float32', 'shape': shape},
            'resize_short_side': int(self.size / self.crop_ratio),
            'center_crop': self.size,
            'interpolation': 'bilinear, antialiased',
            'channel_order': 'RGB' if self.inside else order,
            'normalized_inside': self.inside,
            'mean': list(self.mean),
            'std': list(self.std),
        }


class Exported(nn.Module):
    """A recogniser in eval mode: `images` -> logits (batch, num_classes) and features (batch, num_features), float32.

    Images are uint8 RGB (batch, size, size, 3) where the normalisation is inside, else float32 (batch, 3, size, size).
    """

    def __init__(self, model: Recognizer, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.backbone, self.classifier = model.backbone, model.classifier
        self.inside, self.bgr = preprocessing.inside, preprocessing.bgr
        scale = torch.tensor([1 / (255 * deviation) for deviation in preprocessing.std])
        shift = torch.tensor([-m / d for m, d in zip(preprocessing.mean, preprocessing.std, strict=True)])
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
