"""What a mixer is to a training step."""

from dataclasses import dataclass
from typing import Protocol

import torch

from lib.loss.targets import Targets


@dataclass(frozen=True)
class Mixed:
    """A batch after mixing.

    Attributes:
        images: (batch, 3, size, size) float32, mixed where pixels are mixed.
        targets: whose shares are those of the mixture.
        stage: where the backbone is to mix each image's features with its partner's; 0: nowhere.
        shares: (batch,) float32, the own share of each image at that stage.
    """

    images: torch.Tensor
    targets: Targets
    stage: int = 0
    shares: torch.Tensor | None = None

    def part(self, rows: slice) -> 'Mixed':
        """Return some of the images; pairs stay together if `rows` begins with an even image."""
        if rows == slice(0, len(self.images)):
            return self
        shares = None if self.shares is None else self.shares[rows]
        return Mixed(self.images[rows], self.targets.part(rows), self.stage, shares)


class Mixer(Protocol):
    """Mixes the batch that begins at slot `first_slot` (even) of an epoch. The partner of a slot is slot XOR 1."""

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> Mixed: ...


def unmixed(images: torch.Tensor, labels: torch.Tensor, *, epoch: int, first_slot: int) -> Mixed:
    """Leave a batch as it is."""
    return Mixed(images, Targets(labels))
