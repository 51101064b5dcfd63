"""Several models, and several views of each image, as one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lib.dataset.loader import EvalLoader
from lib.dataset.pipeline import Batch
from lib.model import Recognizer

_ROUNDS = 1000  # of EM; a mixture of a few models settles in some dozens
_SETTLED = 1e-9


@dataclass(frozen=True)
class EnsembleMember:
    """A model with what shows it the images.

    Attributes:
        loader: its first view is the plain one, as in validation.
        flip: whether each view is also seen mirrored.
        counts_plain: False when the plain view is looked at only to compare with.
    """

    model: Recognizer
    loader: EvalLoader
    flip: bool = False
    counts_plain: bool = True


@dataclass(frozen=True)
class EnsembleOutput:
    """What members say of a batch, together.

    Attributes:
        logits: (batch, num_classes) float32, of which the probabilities are the softmax.
        plain: (batch, num_classes) logits of the first member's plain view.
        features: (batch, num_features) mean over the first member's views.
        of_members: (num_members, batch, num_classes) logits of each member alone; empty unless asked for.
    """

    logits: torch.Tensor
    plain: torch.Tensor
    features: torch.Tensor
    of_members: Sequence[torch.Tensor]


def combine(
    members: Sequence[EnsembleMember], batches: Sequence[Sequence[Batch]], weights: Sequence[float], average: str
) -> EnsembleOutput:
    """Look at a batch with all members.

    Args:
        batches: of each member, its views.
        weights: of the members, which sum to 1.
        average: of 'logits' or of 'probabilities', over a member's views and over members.
    """
    looks = [_look(member, views, average) for member, views in zip(members, batches, strict=True)]
    of_members = [logits for logits, _, _ in looks]
    logits = of_members[0] if len(members) == 1 else mean_logits(of_members, average, weights)
    return EnsembleOutput(logits, plain=looks[0][1], features=looks[0][2], of_members=of_members)


def mean_logits(parts: Sequence[torch.Tensor], average: str, weights: Sequence[float] | None = None) -> torch.Tensor:
    """Return logits whose softmax is the mean: of probabilities, or (up to its sum) the geometric one, of logits.

    One part is given back as it is.
    """
    if len(parts) == 1:
        return parts[0]
    weights = weights or [1 / len(parts)] * len(parts)
    if average == 'logits':
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))
    total = torch.zeros_like(parts[0])
    for weight, part in zip(weights, parts, strict=True):
        total += weight * part.softmax(dim=1)
    return total.clamp_min_(torch.finfo(total.dtype).tiny).log_()


def _look(
    member: EnsembleMember, views: Sequence[Batch], average: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a member's logits, those of its plain view, and the mean of its features."""
    seen = [
        image for view in views for image in ([view.images, view.images.flip(-1)] if member.flip else [view.images])
    ]
    features = [member.model.features(images) for images in seen]
    logits = [member.model.classify(part) for part in features]
    plain = logits[0]
    if not member.counts_plain:
        features, logits = features[1 + member.flip :], logits[1 + member.flip :]
    return mean_logits(logits, average), plain, sum(features) / len(features) if len(features) > 1 else features[0]


def mixture_weights(chances: np.ndarray) -> np.ndarray:
    """Return the weights of a mixture of models that make labels most probable (maximum likelihood, by EM).

    The likelihood of sum_m w_m p_m(label) is concave in w; each round multiplies w_m by the mean of p_m over the
    mixture (Dempster, Laird & Rubin, 1977, section 4.3).

    Args:
        chances: (num_images, num_members) probability that each model gives each image's label. Images on which all
            are 0 say nothing.

    Returns:
        (num_members,) float64, at least 0, of sum 1.
    """
    chances = chances[chances.sum(axis=1) > 0].astype(np.float64)
    num_members = chances.shape[1]
    weights = np.full(num_members, 1 / num_members)
    if not len(chances):
        return weights
    for _ in range(_ROUNDS):
        mixture = chances @ weights
        updated = weights * (chances / mixture[:, None]).mean(axis=0)
        if np.abs(updated - weights).max() < _SETTLED:
            break
        weights = updated
    return updated / updated.sum()
