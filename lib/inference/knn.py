"""Classification by the nearest neighbours."""

from dataclasses import dataclass

import numpy as np

from lib.inference.neighbors import Neighbours


@dataclass(frozen=True)
class Votes:
    """The classes that a query's neighbours vote for, those with the largest share first, then the smaller class.

    Attributes:
        classes: (n, k) int64; -1 where the neighbours are of fewer classes.
        shares: (n, k) float32 of all votes; 0 there.
    """

    classes: np.ndarray
    shares: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The class with most votes, (n,) int64."""
        return self.classes[:, 0]


def vote(
    found: Neighbours,
    gallery_labels: np.ndarray,
    *,
    weights: str = 'majority',
    temperature: float = 0.07,
    metric: str = 'cosine',
) -> Votes:
    """Let each query's k neighbours vote for their classes.

    Memory is a few arrays of (n, k), however many classes there are.

    Args:
        found: the neighbours, out of `nearest`.
        gallery_labels: (m,) int, none below 0.
        weights: 'majority': each has one vote; 'similarity': exp(s / temperature) votes, s being the cosine similarity
            (Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, section
            3.4) or minus the distance.
        temperature: above 0.
        metric: by which they were found.

    Raises:
        ValueError: other weights.
    """
    if weights not in ('majority', 'similarity'):
        raise ValueError(f'weights is {weights}, but must be majority or similarity')
    labels = np.asarray(gallery_labels)[found.rows].astype(np.int64)  # (n, k)
    votes = np.ones(labels.shape)
    if weights == 'similarity':
        similarities = found.values.astype(np.float64) * (1 if metric == 'cosine' else -1) / temperature
        votes = np.exp(similarities - similarities.max(axis=1, keepdims=True, initial=-np.inf))
    order = np.argsort(labels, axis=1, kind='stable')
    labels, votes = (np.take_along_axis(part, order, axis=1) for part in (labels, votes))
    is_first = np.ones(labels.shape, bool)
    is_first[:, 1:] = labels[:, 1:] != labels[:, :-1]
    # Rising class numbers get rising places, so that a stable sort by share leaves the smaller class first.
    rows, places = np.arange(len(labels))[:, None], np.cumsum(is_first, axis=1) - 1
    shares, classes = np.zeros(labels.shape), np.full(labels.shape, -1, np.int64)
    np.add.at(shares, (rows, places), votes / votes.sum(axis=1, keepdims=True))
    classes[np.broadcast_to(rows, labels.shape)[is_first], places[is_first]] = labels[is_first]
    order = np.argsort(-shares, axis=1, kind='stable')
    shares, classes = (np.take_along_axis(part, order, axis=1) for part in (shares, classes))
    return Votes(classes, shares.astype(np.float32))
