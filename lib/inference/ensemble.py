"""Several models, and several views of each image, averaged into one prediction."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from lib.dataset.loader import EvalLoader
from lib.dataset.pipeline import Batch
from lib.inference.engine import Engine

_MAX_ROUNDS = 1000  # of EM; a mixture of a few models converges within some dozens
_TOLERANCE = 1e-9  # change of a weight


@dataclass(frozen=True)
class EnsembleMember:
    """A model with the loader of its views.

    Attributes:
        loader: its first view is the plain one, as in validation.
        flip: whether each view is also predicted mirrored.
        averages_plain: False when the plain view is computed for comparison only.
        min_batch: smaller batches are padded to this number of images; the padding is not part of the output.
    """

    engine: Engine
    loader: EvalLoader
    flip: bool = False
    averages_plain: bool = True
    min_batch: int = 0


@dataclass(frozen=True)
class EnsembleOutput:
    """The output of all members for one batch.

    Attributes:
        logits: (batch, num_classes) float32; their softmax is the averaged prediction.
        plain_logits: (batch, num_classes) of the first member's plain view.
        features: (batch, num_features) mean over the first member's views.
        member_logits: (batch, num_classes) logits of each member alone.
    """

    logits: torch.Tensor
    plain_logits: torch.Tensor
    features: torch.Tensor
    member_logits: Sequence[torch.Tensor]


@dataclass(frozen=True)
class EnsembleForward:
    """All members over the images of this rank.

    Attributes:
        weights: weights of the members; they sum to 1.
        average: 'logits' or 'probabilities': what is averaged over a member's views and over members.
    """

    members: Sequence[EnsembleMember]
    weights: Sequence[float]
    average: str

    @property
    def loader(self) -> EvalLoader:
        """The first member's loader; all have the same batches."""
        return self.members[0].loader

    @property
    def num_steps(self) -> int:
        """Batches of this rank."""
        return len(self.loader)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Enter the contexts of all engines."""
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.engine.inference())
            yield

    def outputs(self, slices: Sequence[slice]) -> Iterator[tuple[Batch, EnsembleOutput]]:
        """Yield the plain batch of the first member and the output of all members.

        An image that one view or member cannot decode, none can: readable flags and errors are those of that batch.
        """
        for views in zip(*(member.loader.views(slices) for member in self.members), strict=True):
            yield views[0][0], combine(self.members, views, self.weights, self.average)


def combine(
    members: Sequence[EnsembleMember], batches: Sequence[Sequence[Batch]], weights: Sequence[float], average: str
) -> EnsembleOutput:
    """Compute the output of all members for one batch.

    Args:
        batches: for each member, its views.
        weights: weights of the members; they sum to 1.
        average: 'logits' or 'probabilities': what is averaged over a member's views and over members.
    """
    outputs = [_member_output(member, views, average) for member, views in zip(members, batches, strict=True)]
    member_logits = [logits for logits, _, _ in outputs]
    logits = member_logits[0] if len(members) == 1 else mean_logits(member_logits, average, weights)
    _, plain_logits, features = outputs[0]
    return EnsembleOutput(logits, plain_logits, features, member_logits)


def mean_logits(logits: Sequence[torch.Tensor], average: str, weights: Sequence[float] | None = None) -> torch.Tensor:
    """Return logits whose softmax is the mean probability, or, for 'logits', the normalized geometric mean.

    A single entry is returned as it is.

    Args:
        logits: tensors (batch, num_classes) float32.
        average: 'logits' or 'probabilities'.
        weights: weights of the entries, summing to 1; None: equal ones.
    """
    if len(logits) == 1:
        return logits[0]
    weights = weights or [1 / len(logits)] * len(logits)
    if average == 'logits':
        return _sum(weight * part for weight, part in zip(weights, logits, strict=True))
    total = torch.zeros_like(logits[0])
    for weight, part in zip(weights, logits, strict=True):
        total += weight * part.softmax(dim=1)
    return total.clamp_min_(torch.finfo(total.dtype).tiny).log_()


def _member_output(
    member: EnsembleMember, views: Sequence[Batch], average: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a member's logits, those of its plain view, and the mean of its features."""
    num_images = len(views[0].images)
    padded = [pad_batch(view.images, member.min_batch) for view in views]
    inputs = [images for part in padded for images in ([part, part.flip(-1)] if member.flip else [part])]
    features = [member.engine.features(images) for images in inputs]
    logits = [member.engine.logits(part)[:num_images] for part in features]
    features = [part[:num_images] for part in features]
    plain = logits[0]
    if not member.averages_plain:
        features, logits = features[1 + member.flip :], logits[1 + member.flip :]
    mean = _sum(features) / len(features) if len(features) > 1 else features[0]
    return mean_logits(logits, average), plain, mean


def pad_batch(images: torch.Tensor, min_batch: int) -> torch.Tensor:
    """Return the images followed by zeros, at least `min_batch` in all, in the same memory format."""
    missing = min_batch - len(images)
    if missing <= 0:
        return images
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing))
    return padded.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _sum(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    total = sum(tensors)
    assert isinstance(total, torch.Tensor)  # there is at least one
    return total


def mixture_weights(probabilities: np.ndarray) -> np.ndarray:
    """Return the weights of a mixture of models that maximize the likelihood of the labels, by EM.

    The likelihood of sum_m w_m p_m(label) is concave in w; each round multiplies w_m by the mean of p_m over the
    mixture (Dempster, Laird & Rubin, 1977, section 4.3).

    Args:
        probabilities: (num_images, num_members) probability that each model gives each image's label. Images with 0
            from all models are left out.

    Returns:
        (num_members,) float64, at least 0, of sum 1.
    """
    probabilities = probabilities[probabilities.sum(axis=1) > 0].astype(np.float64)
    num_members = probabilities.shape[1]
    weights = np.full(num_members, 1 / num_members)
    if not len(probabilities):
        return weights
    for _ in range(_MAX_ROUNDS):
        mixture = probabilities @ weights
        updated = weights * (probabilities / mixture[:, None]).mean(axis=0)
        if np.abs(updated - weights).max() < _TOLERANCE:
            break
        weights = updated
    return updated / updated.sum()
