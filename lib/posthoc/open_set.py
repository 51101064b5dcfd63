"""Open-set rejection: scores that are higher for known products than for unknown ones, and a threshold on them.

A good closed-set classifier is a good open-set one (Vaze et al., ICLR 2022), so the scores need no further
training. Each can leave out one class, as if the model did not know it: an image of a class judged without that class
stands for an image of an unknown product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch

from lib.classifier.cosine import unit
from lib.dataset.features import Features
from lib.inference.whitening import Whitening, fit_whitening
from lib.posthoc.class_means import add_by_class

NUM_FOLDS = 5


class KnownScore(Protocol):
    """A score of images that is higher for known products.

    Attributes:
        key: all that it depends on beside the model and the images, serializable as JSON.
    """

    @property
    def key(self) -> dict[str, Any]: ...

    def __call__(self, logits: torch.Tensor, features: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
        """Return the scores (batch,) float32.

        Args:
            logits: (batch, num_classes) float32.
            features: (batch, num_features) float32.
            left_out: (batch,) int64 class that is left out for each image; -1: none.
        """


# Scores by logits: the largest one (Vaze et al., ICLR 2022); minus the free energy (Liu et al., NeurIPS 2020, eq. 4).
LOGIT_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    'max_logit': lambda logits: logits.amax(dim=1),
    'energy': lambda logits: logits.logsumexp(dim=1),
}


@dataclass(frozen=True)
class LogitScore:
    """One of LOGIT_SCORES.

    The weights of the other classes were trained with the class that is left out: its images push their logits down. So
    the scores of classes left out are lower than those of products that the model has never seen.
    """

    name: str

    @property
    def key(self) -> dict[str, Any]:
        """The name."""
        return {'score': self.name}

    def __call__(self, logits: torch.Tensor, features: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
        return LOGIT_SCORES[self.name](_without(logits, left_out))


@dataclass(frozen=True)
class Prototypes:
    """Class means of whitened features.

    Attributes:
        whitening: whitening of features.
        means: (num_classes, dimensions) float32 of unit length; zeros for a class without images.
    """

    whitening: Whitening
    means: torch.Tensor

    def similarities(self, features: torch.Tensor) -> torch.Tensor:
        """Return cosine similarities (batch, num_classes); -inf to a class without images."""
        device = self.means.device
        whitened = torch.from_numpy(self.whitening(features.cpu().numpy(), device=device)).to(device)
        return (whitened @ self.means.T).masked_fill(~self.means.any(dim=1), -torch.inf)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that `from_tensors` takes, on the CPU."""
        mean, projection = (torch.from_numpy(array) for array in (self.whitening.mean, self.whitening.projection))
        return {'mean': mean, 'projection': projection, 'means': self.means.cpu()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor], *, num_features: int, num_classes: int) -> Self:
        """Return the class means in `tensors`, for a model. Raises: ValueError, if they do not fit it."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.dtype == torch.float32}
        dimensions = shapes.get('projection', (0,))[0]
        expected = {
            'mean': (num_features,),
            'projection': (dimensions, num_features),
            'means': (num_classes, dimensions),
        }
        if shapes != expected:
            raise ValueError(f'tensors of shapes {shapes} instead of {expected}')
        return cls(Whitening(tensors['mean'].numpy(), tensors['projection'].numpy()), tensors['means'])


@dataclass(frozen=True)
class PrototypeScore:
    """The cosine similarity to the most similar class mean, in features whitened within classes.

    A whitening that was fitted to a class separates it from the others better than an unknown product. So an image
    whose class is left out has the whitening of a fold that was fitted without the class.

    Attributes:
        prototypes: prototypes of all classes.
        folds: those by which the classes at fold, fold + K, fold + 2 K, ... of K folds are left out; may be empty.
        about: what they are fitted on, for `key`.
    """

    prototypes: Prototypes
    folds: Sequence[Prototypes] = ()
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> dict[str, Any]:
        """The name, and what the prototypes are fitted on."""
        return {'score': 'prototype', 'folds': len(self.folds), **self.about}

    def __call__(self, logits: torch.Tensor, features: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
        scores = self.prototypes.similarities(features).amax(dim=1)
        left_out = left_out.to(scores.device)
        for number, fold in enumerate(self.folds):
            rows = torch.nonzero((left_out >= 0) & (left_out % len(self.folds) == number)).squeeze(1)
            if len(rows):
                similarities = fold.similarities(features[rows.to(features.device)])
                scores[rows] = _without(similarities, left_out[rows]).amax(dim=1)
        return scores.to(logits.device)


def fit_prototypes(
    features: Features, num_classes: int, *, device: torch.device, about: dict[str, Any], num_folds: int = NUM_FOLDS
) -> PrototypeScore:
    """Fit whitenings and class means to images with labels; those that cannot be decoded do not count.

    Time: 1 + num_folds times that of fit_whitening. Memory: 1 + num_folds times the class means.

    Args:
        about: what the features are of, serializable as JSON.
        num_folds: number of folds of the classes that are left out; 0: none will be.

    Raises:
        ValueError: no image can be decoded.
    """
    labels = np.where(features.readable, features.labels, -1)
    every = _prototypes(features, labels, labels, num_classes, device)
    num_folds = min(num_folds, num_classes)
    folds = []
    for number in range(num_folds):
        others = np.where(labels % num_folds == number, -1, labels)
        folds.append(_prototypes(features, others, labels, num_classes, device) if (others >= 0).any() else every)
    return PrototypeScore(every, folds, about)


def _prototypes(
    features: Features, fitted: np.ndarray, labels: np.ndarray, num_classes: int, device: torch.device
) -> Prototypes:
    """Return the means of the images with `labels` >= 0 under the whitening of those with labels `fitted` >= 0."""
    whitening = fit_whitening(features.values, fitted, device=device)
    sums = torch.zeros(num_classes, whitening.dimensions)
    add_by_class(sums, features, labels, lambda x: torch.from_numpy(whitening(x.numpy(), device=device)))
    return Prototypes(whitening, unit(sums).to(device))


def _without(values: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
    """Return values (batch, num_classes), -inf for the class that is left out; at -1 none is."""
    column = left_out.clamp(min=0)[:, None]
    replaced = values.gather(1, column).masked_fill(left_out[:, None] >= 0, -torch.inf)
    return values.scatter(1, column, replaced)


@dataclass(frozen=True)
class RejectionThreshold:
    """The threshold of a score for a wanted false-acceptance rate.

    Attributes:
        value: the smallest score that is accepted; inf: none is.
        max_rate: the wanted rate: of the images of unknown products, the fraction that is accepted as known.
        guaranteed: the rate that holds for an image of a further unknown class, on average over draws of all classes,
            whatever the distribution of scores, if the classes are exchangeable.
        num_classes, num_images: size of the set that it was chosen on.
    """

    value: float
    max_rate: float
    guaranteed: float
    num_classes: int
    num_images: int

    @property
    def num_needed(self) -> int:
        """The number of classes from which on the wanted rate can be guaranteed."""
        return int(np.ceil(1 / self.max_rate - 1e-9)) - 1

    def accepts(self, scores: np.ndarray) -> np.ndarray:
        """Return which scores (n,) are accepted as known, (n,) bool; nan never is."""
        return scores >= self.value


def conformal_threshold(scores: np.ndarray, classes: np.ndarray, max_rate: float) -> RejectionThreshold:
    """Choose the smallest threshold that holds a false-acceptance rate (hierarchical conformal prediction).

    Images of one class resemble each other, so classes are the exchangeable units, not images. With C unknown classes,
    the mean over C + 1 classes of the fraction of images above the threshold is at most `max_rate`, where the further
    class counts as 1 (Lee, Barber & Willett, Distribution-free inference with hierarchical data, 2023, section 3). With
    fewer than 1 / max_rate - 1 classes, infinity alone has this property. Then the further class counts as 0, and the
    guaranteed rate is 1 / (C + 1) larger than the wanted one.

    Args:
        scores: (n,) float32 of images of unknown products; n > 0.
        classes: (n,) their products.
        max_rate: above 0, below 1.

    Raises:
        ValueError: no image.
    """
    if not len(scores):
        raise ValueError('a threshold needs at least one image of an unknown product')
    _, class_of, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    order = np.argsort(-scores, kind='stable')
    num_classes = len(sizes)
    allowed = max_rate * (num_classes + 1)
    is_guaranteed = allowed >= 1 - 1e-9
    # The scores that may be accepted, from the largest down: their weights, of sum 1 per class, are at most the rest.
    accepted = np.cumsum(1 / sizes[class_of[order]])
    number = int(np.searchsorted(accepted, allowed - is_guaranteed + 1e-9, side='right'))
    value = -np.inf
    if number < len(scores):
        value = float(np.nextafter(np.float32(scores[order[number]]), np.float32(np.inf)))
    guaranteed = max_rate if is_guaranteed else max_rate + 1 / (num_classes + 1)
    return RejectionThreshold(value, max_rate, guaranteed, num_classes, len(scores))
