"""Training targets of a batch: one label per image, or several with mixing coefficients."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Targets:
    """Labels of a batch. A mixed image has a few labels with coefficients: no (batch, num_classes) matrix is needed.

    Attributes:
        labels: (batch,) or (batch, k) int64.
        lam: (batch, k) float32 mixing coefficients, at least 0, each row sums to 1; None with one label per image.
        weights: (batch,) float32 weights of the images, or (batch, k) of the images that the labels are from; None: all
            1.
    """

    labels: torch.Tensor
    lam: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    @property
    def hard(self) -> torch.Tensor:
        """Return the label with the largest coefficient of each image, (batch,) int64."""
        if self.lam is None:
            return self.labels
        return self.labels.gather(1, self.lam.argmax(dim=1, keepdim=True)).squeeze(1)

    def select(self, rows: slice) -> 'Targets':
        """Return the targets of some of the images."""
        lam = None if self.lam is None else self.lam[rows]
        weights = None if self.weights is None else self.weights[rows]
        return Targets(self.labels[rows], lam, weights)
