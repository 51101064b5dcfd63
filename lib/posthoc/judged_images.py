"""Features and labels of the images whose labels are judged, and the means of their classes without each image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.classifier.cosine import unit
from lib.posthoc.linear_head import LinearHead
from lib.posthoc.tau_sweep import NEVER
from lib.runtime.checksums import checksum, in_threads
from lib.runtime.column_store import ColumnStore, open_or_create

_MAX_VALUES = 1 << 22  # in memory at a time
LEAST_WEIGHT = 1e-3  # of the other images of a class, which otherwise has none
_SCALES = 2.0 ** (np.arange(0, 17) / 2)
NUM_FOR_SCALE = 2048  # images


@dataclass(frozen=True)
class JudgedImages:
    """Features and labels of the images to judge.

    Attributes:
        values: (m, num_features) float32 or float16, maybe memory-mapped; used scaled to length 1.
        rows: (n,) ascending: the rows of `values` that these images are.
        labels: (n,) int64, none below 0.
        num_classes: the number of classes.
        weights: (n,) float32 of the images in fits and means, none below 0.
    """

    values: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    num_classes: int
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_features(self) -> int:
        """The width of the features."""
        return int(self.values.shape[1])

    def key(self) -> dict[str, Any]:
        """Return checksums of all of it, by one pass over the features."""
        parts = list(row_blocks(self.rows, self.num_features))
        sums = np.fromiter(in_threads(lambda rows: checksum(self.values[rows]), parts, len(parts)), np.uint32)
        arrays = {'features': sums, 'rows': self.rows, 'labels': self.labels, 'weights': self.weights}
        return {'num_classes': self.num_classes, **{name: checksum(array) for name, array in arrays.items()}}

    def at(self, positions: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return unit features (k, num_features) float32, labels and weights (k,) of some of the images."""
        values = self.values[self.rows[positions]].astype(np.float32)
        arrays = values, self.labels[positions], self.weights[positions]
        features, labels, weights = (torch.from_numpy(array).to(device) for array in arrays)
        return unit(features), labels, weights

    def mean(self, device: torch.device) -> torch.Tensor:
        """Compute the mean unit feature, (num_features,) float32, by one pass in float64."""
        total = torch.zeros(self.num_features, dtype=torch.float64)
        for some in row_blocks(np.arange(len(self)), self.num_features):
            total += self.at(some, torch.device('cpu'))[0].double().sum(dim=0)
        return (total / max(1, len(self))).float().to(device)


def row_blocks(rows: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Yield the rows in blocks, so small that `width` numbers per row take little memory."""
    step = max(1, _MAX_VALUES // width)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def joined_features(sources: Sequence[np.ndarray], rows: np.ndarray, folder: Path) -> np.ndarray:
    """Return the features of several networks side by side, stored in `folder` and memory-mapped.

    Each source is scaled to length 1, centered, and divided by its root mean square, so that all have the same weight.

    Args:
        sources: (m, num_features) of each network.
        rows: (n,) ascending, which are used; the others are zeros.

    Returns:
        (m, sum of the widths) float16.
    """
    parts = [JudgedImages(values, rows, np.zeros(len(rows), np.int64), 1, np.ones(len(rows))) for values in sources]
    width, cpu = sum(part.num_features for part in parts), torch.device('cpu')
    key = {'sources': [part.key() for part in parts]}
    store = open_or_create(folder, len(sources[0]), {'features': (np.float16, (width,))}, key)
    if store.is_complete:
        return store.columns['features']
    centers = [part.mean(cpu) for part in parts]
    scales = [float((1 - center.square().sum()).clamp_min(1e-12).rsqrt()) for center in centers]
    used = np.zeros(len(sources[0]), bool)
    used[rows] = True
    for some in row_blocks(np.arange(len(used)), width):
        block = np.zeros((len(some), width), np.float16)
        positions = np.arange(*np.searchsorted(rows, (some[0], some[-1] + 1)))
        columns = [
            (part.at(positions, cpu)[0] - center) * scale
            for part, center, scale in zip(parts, centers, scales, strict=True)
        ]
        block[used[some]] = torch.cat(columns, dim=1).half().numpy()
        store.write(slice(int(some[0]), int(some[-1]) + 1), {'features': block})
    store.flush()
    return ColumnStore(folder, done=np.ones(len(used), bool)).columns['features']


class LeaveOneOutMeans:
    """Mean unit features of every class, minus the mean of all images, and those of an image's own class without it.

    The mean of a class without image x of weight w is (sum - w x) / (total - w).

    Attributes:
        head: classifier of centered unit features: cosine similarity to the mean of each class, times `scale`. A class
            without images never wins.
        spread: mean squared distance of the unit features from their mean.
        scale: minimizes the cross entropy of a sample of the images, each left out of the mean of its class.
    """

    def __init__(self, images: JudgedImages, device: torch.device) -> None:
        self._center = images.mean(device)
        self.spread = float(1 - self._center.square().sum())
        sums = torch.zeros(images.num_classes, images.num_features, dtype=torch.float64)
        totals = torch.zeros(images.num_classes, dtype=torch.float64)
        for some in row_blocks(np.arange(len(images)), images.num_features):
            features, labels, weights = (part.cpu() for part in images.at(some, device))
            features = self.centered(features.to(device)).cpu().double()
            sums.index_add_(0, labels, features * weights.double()[:, None])
            totals.index_add_(0, labels, weights.double())
        self._sums, self._totals = sums.float().to(device), totals.float().to(device)
        bias = torch.zeros(images.num_classes).masked_fill(totals <= LEAST_WEIGHT, NEVER).to(device)
        self.directions = unit(self._sums)
        self.head = LinearHead(self.directions, bias)
        self.scale = self._best_scale(images)
        self.head = LinearHead(self.directions * self.scale, bias)

    def centered(self, features: torch.Tensor) -> torch.Tensor:
        """Return unit features (k, num_features) minus the mean of all images, scaled to length 1 again."""
        return unit(features - self._center)

    def own_similarity(self, centered: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the cosine similarity (k,) of images and the mean of the others of their class; nan without others."""
        others = self._sums[labels] - weights[:, None] * centered
        is_alone = self._totals[labels] - weights <= LEAST_WEIGHT
        return (unit(others) * centered).sum(dim=1).masked_fill(is_alone, torch.nan)

    def _best_scale(self, images: JudgedImages) -> float:
        step = max(1, len(images) // NUM_FOR_SCALE)
        positions = np.arange(0, len(images), step)[:NUM_FOR_SCALE]
        losses = np.zeros(len(_SCALES))
        for some in row_blocks(positions, max(images.num_classes, images.num_features)):
            features, labels, weights = images.at(some, self._center.device)
            centered = self.centered(features)
            own, cosines = self.own_similarity(centered, labels, weights), self.head.logits(centered)
            counted = ~own.isnan()
            cosines[torch.arange(len(labels)), labels] = own
            for number, scale in enumerate(_SCALES.tolist()):
                loss = torch.nn.functional.cross_entropy(cosines[counted] * scale, labels[counted], reduction='none')
                losses[number] += float((loss * weights[counted]).sum())
        return float(_SCALES[int(losses.argmin())])
