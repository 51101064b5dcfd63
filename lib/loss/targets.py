"""What a batch is to be recognised as: a label an image, or several that share it."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Targets:
    """Labels of a batch. A mixed image has a few labels with shares: no (batch, num_classes) matrix is needed.

    Attributes:
        labels: (batch,) or (batch, k) int64.
        shares: (batch, k) float32, at least 0, adding up to 1 a row; None with one label an image.
        weights: (batch,) float32, how much each image counts; None: all the same.
    """

    labels: torch.Tensor
    shares: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    @property
    def hard(self) -> torch.Tensor:
        """The label with the largest share of each image, (batch,) int64."""
        if self.shares is None:
            return self.labels
        return self.labels.gather(1, self.shares.argmax(dim=1, keepdim=True)).squeeze(1)

    def part(self, rows: slice) -> 'Targets':
        """Return the targets of some of the images."""
        shares = None if self.shares is None else self.shares[rows]
        weights = None if self.weights is None else self.weights[rows]
        return Targets(self.labels[rows], shares, weights)
