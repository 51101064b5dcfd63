"""Exact nearest neighbors in feature space, block by block in bounded memory, and classification by their votes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lib.classifier.cosine import unit
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup

METRICS = ('cosine', 'euclidean')
_GALLERY_BLOCK = 4096
_LOW = (1 << 32) - 1  # the lower half of a key, which holds the row
CPU = torch.device('cpu')


class Neighbors(NamedTuple):
    """The neighbors of each query, the nearest first.

    Attributes:
        rows: (n, k) int64 rows of the gallery.
        values: (n, k) float32 cosine similarities, or Euclidean distances.
    """

    rows: np.ndarray
    values: np.ndarray


# A search with the arguments of `neighbor_blocks`.
Search = Callable[..., Iterator[tuple[np.ndarray, Neighbors]]]


def nearest(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    metric: str = 'cosine',
    exclude_self: bool = False,
    device: torch.device = CPU,
    search: Search | None = None,
) -> Neighbors:
    """Return the k nearest rows of the gallery to each query; at most m. Arguments as in `neighbor_blocks`.

    `search`: another search than that one.
    """
    blocks = (search or neighbor_blocks)(queries, gallery, k, metric=metric, exclude_self=exclude_self, device=device)
    found = [part for _, part in blocks]
    if not found:
        return Neighbors(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    return Neighbors(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def neighbor_blocks(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    metric: str = 'cosine',
    exclude_self: bool = False,
    rows: np.ndarray | None = None,
    device: torch.device = CPU,
    megabytes: int = 256,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[tuple[np.ndarray, Neighbors]]:
    """Yield (rows of queries, their neighbors) until all queries are done.

    Every query is compared with the whole gallery; nothing is approximated. Among rows at equal distance, the smaller
    row comes first. Cosines are computed in float32 (with a zero vector: 0), distances in float64, since those of near
    neighbors are small differences of large numbers; both are ranked in float32.

    Args:
        queries, gallery: (n, d) and (m, d) float32, maybe memory-mapped; a block of each is in memory at a time.
        k: at least 1.
        metric: one of METRICS.
        exclude_self: the queries are the gallery's rows, and no query is its own neighbor.
        rows: rows of the queries to search for, in this order; None: all.
        device: the one that computes.
        megabytes: approximate limit of its memory.
        group: ranks that have the same arguments, and share the blocks; all of them get all neighbors.

    Raises:
        ValueError: no gallery row to find, an unknown metric, or different widths.
    """
    if metric not in METRICS:
        raise ValueError(f'metric is {metric}, but must be one of {", ".join(METRICS)}')
    if k < 1 or len(gallery) - exclude_self < 1 or queries.shape[1:] != gallery.shape[1:]:
        raise ValueError(f'cannot find {k} neighbors of queries {queries.shape} in a gallery {gallery.shape}')
    k = min(k, len(gallery) - exclude_self)
    rows = np.arange(len(queries)) if rows is None else rows
    budget, width = megabytes << 20, gallery.shape[1]
    gallery_block = max(1, min(_GALLERY_BLOCK, budget // (64 * width)))
    # Per pair: a score (4 or 8 bytes) and its key; per neighbor: keys before and after.
    query_block = max(1, budget // (32 * (gallery_block + k) + 16 * width))

    def neighbors(start: int) -> Neighbors:
        some = rows[start : start + query_block]
        own_rows = some if exclude_self else None
        keys = _best_keys(_prepared(queries[some], metric, device), gallery, k, gallery_block, own_rows)
        return _neighbors(keys, metric)

    starts = range(0, len(rows), query_block)
    for start, found in zip(starts, group.map(neighbors, starts), strict=True):
        yield rows[start : start + query_block], found


def _best_keys(
    queries: torch.Tensor, gallery: np.ndarray, k: int, gallery_block: int, own_rows: np.ndarray | None
) -> torch.Tensor:
    """Return (n, k) keys of the nearest rows, the largest first; `own_rows` of the queries are left out."""
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
            in_block = torch.nonzero((own >= start) & (own < start + len(block))).squeeze(1)
            scores[in_block, own[in_block] - start] = -torch.inf
        best = torch.cat([best, _candidates(scores, start, k)], dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1, sorted=False).values
    return best.sort(dim=1, descending=True).values


def _prepared(vectors: np.ndarray, metric: str, device: torch.device) -> torch.Tensor:
    # Copied, since torch warns about read-only memory such as that of a memory-mapped file.
    block = torch.from_numpy(np.array(vectors, np.float32)).to(device)
    return unit(block) if metric == 'cosine' else block.double()


def _candidates(scores: torch.Tensor, first_row: int, k: int) -> torch.Tensor:
    """Return keys (n, at most k) of the k best of a block.

    topk breaks ties arbitrarily, which matters only where more than k are at least as good as the k-th. Only for those
    queries all keys are computed.
    """
    columns = torch.arange(scores.shape[1], device=scores.device)
    if k >= scores.shape[1]:
        return _keys(scores, columns + first_row)
    top = scores.topk(k, dim=1, sorted=False)
    keys = _keys(top.values, top.indices + first_row)
    tied = torch.nonzero((scores >= top.values.amin(dim=1, keepdim=True)).sum(dim=1) > k).squeeze(1)
    for some in tied.split(max(1, len(scores) // 8)):
        keys[some] = _keys(scores[some], columns + first_row).topk(k, dim=1, sorted=False).values
    return keys


def _keys(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return distinct int64 keys that order pairs by score, then by smaller row.

    The upper half holds the score's bits, mapped so that integers compare as the floats do; the lower one decreases
    with the row. So topk has no ties to break.

    Args:
        scores: (n, m) float32.
        rows: (n, m) or (m,) of the gallery.
    """
    bits = (scores + 0.0).view(torch.int32)  # adding 0 maps -0 to 0
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32).add_(_LOW - rows)


def _neighbors(keys: torch.Tensor, metric: str) -> Neighbors:
    upper = (keys >> 32).int()
    scores = (upper ^ ((upper >> 31) & 0x7FFFFFFF)).view(torch.float32)
    values = scores if metric == 'cosine' else (-scores).sqrt()
    return Neighbors((_LOW - (keys & _LOW)).cpu().numpy(), values.cpu().numpy())


@dataclass(frozen=True)
class Votes:
    """The votes of each query's neighbors: the class with most votes first, of equal ones the smaller class.

    Attributes:
        classes: (n, k) int64; -1 where the neighbors are of fewer classes.
        fractions: (n, k) float32 of the votes; 0 where the class is -1.
    """

    classes: np.ndarray
    fractions: np.ndarray

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
    """Count the votes of each query's k neighbors for their classes, in a few arrays (n, k) for any number of classes.

    Args:
        found: the neighbors, from `nearest`.
        gallery_labels: (m,) int, none below 0.
        weights: 'majority': each has one vote; 'similarity': exp(s / temperature) votes, s being the cosine similarity
            (Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, section
            3.4) or minus the distance.
        temperature: above 0.
        metric: that of `found`.

    Raises:
        ValueError: unknown weights.
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
    # Columns ascend with the class, so a stable sort by fraction leaves the smaller class first.
    rows, columns = np.arange(len(labels))[:, None], np.cumsum(is_first, axis=1) - 1
    fractions: np.ndarray = np.zeros(labels.shape)
    classes: np.ndarray = np.full(labels.shape, -1, np.int64)
    np.add.at(fractions, (rows, columns), votes / votes.sum(axis=1, keepdims=True))
    classes[np.broadcast_to(rows, labels.shape)[is_first], columns[is_first]] = labels[is_first]
    order = np.argsort(-fractions, axis=1, kind='stable')
    fractions, classes = (np.take_along_axis(part, order, axis=1) for part in (fractions, classes))
    return Votes(classes, fractions.astype(np.float32))


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors (..., d) scaled to length 1; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
