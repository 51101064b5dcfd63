"""Retrieval metrics: recall@k, R-precision, mAP@R."""

from dataclasses import dataclass

import numpy as np
import torch

from lib.inference.neighbors import CPU, Search, neighbor_blocks

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class Retrieval:
    """Retrieval metrics, fractions by name: recall@1, ..., r_precision, map@r.

    Attributes:
        images: averages over queries.
        classes: averages over the classes that have queries, of averages over their queries.
        num_queries: queries with images of their class in the gallery.
        left_out: queries without such images, or of unknown class.
    """

    images: dict[str, float]
    classes: dict[str, float]
    num_queries: int
    left_out: int


def retrieval_metrics(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    recall_at: tuple[int, ...] = RECALL_AT,
    metric: str = 'cosine',
    exclude_self: bool = False,
    device: torch.device = CPU,
    search: Search = neighbor_blocks,
) -> Retrieval:
    """Compute retrieval metrics (mAP@R, R-precision: Musgrave et al., A Metric Learning Reality Check, ECCV 2020).

    R is the number of gallery images of the query's class, itself not counted. R-precision is the
    fraction of its R nearest that are of its class, and mAP@R = 1/R sum_{i=1..R} P(i), P(i) being the precision at i
    where the i-th is of its class, else 0. recall@k is the fraction of queries with an image of their class among the k
    nearest.

    Queries are grouped by R, so that only those of large classes need many neighbors; no array is of size n x m.

    Args:
        queries, gallery: (n, d) and (m, d) float32, maybe memory-mapped.
        query_labels, gallery_labels: (n,) and (m,); below 0 where unknown.
        recall_at: the k of recall@k.
        metric, exclude_self, device: as in neighbor_blocks.
        search: function that finds the neighbors.
    """
    counts = np.bincount(gallery_labels[gallery_labels >= 0], minlength=int(query_labels.max(initial=0)) + 1)
    num_relevant = np.where(query_labels >= 0, counts[query_labels.clip(min=0)] - exclude_self, 0)  # R of each query
    rows = np.flatnonzero(num_relevant > 0)
    names = [*(f'recall@{k}' for k in recall_at), 'r_precision', 'map@r']
    if not len(rows):
        return Retrieval({}, {}, 0, len(queries))
    sums, totals = np.zeros((len(names), len(counts))), np.zeros(len(counts), np.int64)
    for band in _bands(rows, num_relevant):
        k = max(int(num_relevant[band].max()), *recall_at)
        for some, found in search(
            queries, gallery, k, metric=metric, exclude_self=exclude_self, rows=band, device=device
        ):
            labels = query_labels[some]
            metrics = _query_metrics(gallery_labels[found.rows] == labels[:, None], num_relevant[some], recall_at)
            for row, values in zip(sums, metrics, strict=True):
                row += np.bincount(labels, weights=values, minlength=len(counts))
            totals += np.bincount(labels, minlength=len(counts))
    present = totals > 0
    by_image, by_class = sums.sum(axis=1) / totals.sum(), (sums[:, present] / totals[present]).mean(axis=1)
    images, classes = (dict(zip(names, values.tolist(), strict=True)) for values in (by_image, by_class))
    return Retrieval(images, classes, len(rows), len(queries) - len(rows))


def _bands(rows: np.ndarray, num_relevant: np.ndarray) -> list[np.ndarray]:
    """Split the rows into bands in which the largest R is less than twice the smallest."""
    octaves = np.frexp(num_relevant[rows])[1]
    return [rows[octaves == octave] for octave in np.unique(octaves)]


def _query_metrics(hits: np.ndarray, num_relevant: np.ndarray, recall_at: tuple[int, ...]) -> list[np.ndarray]:
    """Return each metric of each query, (n,) float64; hits (n, k) bool: whether a neighbor is of its class."""
    positions = np.arange(1, hits.shape[1] + 1)
    within = hits & (positions <= num_relevant[:, None])
    precision = np.cumsum(hits, axis=1, dtype=np.int32) / positions
    return [
        *(hits[:, :k].any(axis=1).astype(float) for k in recall_at),
        within.sum(axis=1) / num_relevant,
        np.where(within, precision, 0.0).sum(axis=1) / num_relevant,
    ]
