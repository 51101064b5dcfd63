"""Exact nearest neighbours in feature space, block by block: memory stays bounded, whatever the sizes.

Classification by the nearest neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lib.classifier.cosine import unit

METRICS = ('cosine', 'euclidean')
_GALLERY_BLOCK = 4096
_LOW = (1 << 32) - 1  # the lower half of a key, where the row is
CPU = torch.device('cpu')


class Neighbors(NamedTuple):
    """Of each query, the nearest first.

    Attributes:
        rows: (n, k) int64 rows of the gallery.
        values: (n, k) float32 cosine similarities, or Euclidean distances.
    """

    rows: np.ndarray
    values: np.ndarray


def nearest(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    metric: str = 'cosine',
    same: bool = False,
    device: torch.device = CPU,
) -> Neighbors:
    """Return the k nearest rows of the gallery to each query; fewer where there are fewer. As `neighbour_blocks`."""
    found = [part for _, part in neighbor_blocks(queries, gallery, k, metric=metric, same=same, device=device)]
    if not found:
        return Neighbors(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    return Neighbors(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def neighbor_blocks(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    metric: str = 'cosine',
    same: bool = False,
    rows: np.ndarray | None = None,
    device: torch.device = CPU,
    megabytes: int = 256,
) -> Iterator[tuple[np.ndarray, Neighbors]]:
    """Yield (rows of queries, their neighbours) until all queries are done.

    Every query is compared with the whole gallery; nothing is approximated. Of rows at the same distance the smaller
    row is nearer. Cosines are computed in float32 (with a zero vector: 0), distances in float64, since those of near
    neighbours are small differences of large numbers; both are ranked in float32.

    Args:
        queries, gallery: (n, d) and (m, d) float32, maybe memory-mapped; a block of each is in memory at a time.
        k: at least 1.
        metric: one of METRICS.
        same: the queries are the gallery's rows, and no query is its own neighbour.
        rows: which queries, in which order; None: all.
        device: that computes.
        megabytes: of memory for it, roughly.

    Raises:
        ValueError: no row of the gallery to find, an unknown metric, or widths that differ.
    """
    if metric not in METRICS:
        raise ValueError(f'metric is {metric}, but must be one of {", ".join(METRICS)}')
    if k < 1 or len(gallery) - same < 1 or queries.shape[1:] != gallery.shape[1:]:
        raise ValueError(f'{k} neighbours of {queries.shape} among {gallery.shape}')
    k = min(k, len(gallery) - same)
    rows = np.arange(len(queries)) if rows is None else rows
    budget, width = megabytes << 20, gallery.shape[1]
    gallery_block = max(1, min(_GALLERY_BLOCK, budget // (64 * width)))
    # Of a pair: a score (4 or 8 bytes) and what is made of it; of a neighbour: keys before and after.
    query_block = max(1, budget // (32 * (gallery_block + k) + 16 * width))
    for start in range(0, len(rows), query_block):
        some = rows[start : start + query_block]
        keys = _best_keys(_prepared(queries[some], metric, device), gallery, k, gallery_block, some if same else None)
        yield some, _neighbors(keys, metric)


def _best_keys(
    queries: torch.Tensor, gallery: np.ndarray, k: int, gallery_block: int, own_rows: np.ndarray | None
) -> torch.Tensor:
    """Return (n, k) keys of the nearest rows, the largest first; `own_rows` are the queries' own, never found."""
    device, is_cosine = queries.device, queries.dtype == torch.float32
    metric = 'cosine' if is_cosine else 'euclidean'
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    own = None if own_rows is None else torch.from_numpy(own_rows).to(device)
    for start in range(0, len(gallery), gallery_block):
        block = _prepared(gallery[start : start + gallery_block], metric, device)
        scores = queries @ block.T  # (n, block)
        if not is_cosine:
            squares = block.square().sum(dim=1) + queries.square().sum(dim=1, keepdim=True)
            scores = scores.mul_(2).sub_(squares).clamp_(max=0).float()
        if own is not None:
            here = torch.nonzero((own >= start) & (own < start + len(block))).squeeze(1)
            scores[here, own[here] - start] = -torch.inf
        best = torch.cat([best, _candidates(scores, start, k)], dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1, sorted=False).values
    return best.sort(dim=1, descending=True).values


def _prepared(vectors: np.ndarray, metric: str, device: torch.device) -> torch.Tensor:
    # Copied, since torch wants memory that it could write to, which a memory-mapped file is not.
    block = torch.from_numpy(np.array(vectors, np.float32)).to(device)
    return unit(block) if metric == 'cosine' else block.double()


def _candidates(scores: torch.Tensor, first_row: int, k: int) -> torch.Tensor:
    """Return keys (n, at most k) of the k best of a block.

    topk breaks ties as it likes, which matters only where more than k are at least as good as the k-th. For those
    queries alone all keys are made.
    """
    columns = torch.arange(scores.shape[1], device=scores.device)
    if k >= scores.shape[1]:
        return _keys(scores, columns + first_row)
    found = scores.topk(k, dim=1, sorted=False)
    keys = _keys(found.values, found.indices + first_row)
    tied = torch.nonzero((scores >= found.values.amin(dim=1, keepdim=True)).sum(dim=1) > k).squeeze(1)
    for some in tied.split(max(1, len(scores) // 8)):
        keys[some] = _keys(scores[some], columns + first_row).topk(k, dim=1, sorted=False).values
    return keys


def _keys(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return int64 numbers, all different, that order pairs as (score, smaller row first) does.

    The upper half is the score's bits, turned so that integers compare as the floats do; the lower one counts rows
    down. So topk never meets any ties.

    Args:
        scores: (n, m) float32.
        rows: (n, m) or (m,) of the gallery.
    """
    bits = (scores + 0.0).view(torch.int32)  # adding 0 makes -0 the 0 that it equals
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32).add_(_LOW - rows)


def _neighbors(keys: torch.Tensor, metric: str) -> Neighbors:
    upper = (keys >> 32).int()
    scores = (upper ^ ((upper >> 31) & 0x7FFFFFFF)).view(torch.float32)
    values = scores if metric == 'cosine' else (-scores).sqrt()
    return Neighbors((_LOW - (keys & _LOW)).cpu().numpy(), values.cpu().numpy())


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
    found: Neighbors,
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
