"""Search results improved after the search: alpha query expansion, and re-ranking by k-reciprocal neighbors."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from lib.inference.neighbors import CPU, Neighbors, Search, nearest, neighbor_blocks, unit_length

METHODS = ('query_expansion', 'reciprocal')

# Zhong et al., section 4.1, and Radenovic et al., section 5.2, with fewer neighbors: classes of products are small.
NUM_NEIGHBORS, NUM_AVERAGED, ORIGINAL_WEIGHT = 20, 6, 0.3
NUM_EXPANDED, EXPANSION_POWER = 10, 3.0
NUM_CANDIDATES = 100
_BLOCK_VALUES = 1 << 22
_ROUNDING = 1e-6  # of cosines: that of x and y may differ from that of y and x


def expanded_queries(
    queries: np.ndarray,
    gallery: np.ndarray,
    found: Neighbors,
    *,
    number: int = NUM_EXPANDED,
    power: float = EXPANSION_POWER,
) -> np.ndarray:
    """Return each query plus its nearest neighbors, weighted by s^power (alpha query expansion: Radenovic et al., TPAMI
    2019, section 3.4).

    All vectors are scaled to unit length before, and the results after. Searching again with them finds more.

    Args:
        queries, gallery: (n, d) and (m, d) float32, maybe memory-mapped.
        found: the neighbors of the queries by cosine similarity s; those with s below 0 are left out.
        number: how many neighbors to add.
        power: alpha of the paper.
    """
    expanded = np.empty(queries.shape, np.float32)
    for rows in _blocks(len(queries), queries.shape[1] * (number + 1)):
        near = found.rows[rows, :number]
        weights = found.values[rows, :number].clip(min=0) ** power
        sums = unit_length(queries[rows]) + np.einsum('nk,nkd->nd', weights, unit_length(gallery[near]))
        expanded[rows] = unit_length(sums)
    return expanded


class _Sparse(NamedTuple):
    """Sparse rows: the columns and values of row i are at starts[i] to starts[i + 1], by ascending column."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def positions(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return, for the values of the given rows, the position of their row in `rows`, and their own."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        owners = np.repeat(np.arange(len(rows)), lengths)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return owners, self.starts[rows][owners] + within


class ReciprocalRanking:
    """Re-ranking by k-reciprocal neighbors (Zhong et al., Re-ranking Person Re-identification with k-Reciprocal
    Encoding, CVPR 2017).

    Two images are near if they have the same k-reciprocal neighbors, those that are in turn among whose nearest they
    are. The distance is (1 - w) times the Jaccard distance of these neighborhoods plus w times 1 - cosine.

    The paper encodes all queries and the gallery together. Here the gallery is encoded once, without the queries, so a
    result does not depend on other queries. Memory: O(gallery x k1) beside the features; none is of size n x m.

    Args:
        gallery: (m, d) float32, maybe memory-mapped.
        graph: the at least k1 nearest rows to each row of the gallery by cosine similarity, without itself.
        k1: neighbors that make a neighborhood.
        k2: images whose neighborhoods are averaged, the image itself among them.
        weight: w, the weight of the original distance.
    """

    def __init__(
        self,
        gallery: np.ndarray,
        graph: Neighbors,
        *,
        k1: int = NUM_NEIGHBORS,
        k2: int = NUM_AVERAGED,
        weight: float = ORIGINAL_WEIGHT,
    ) -> None:
        self._gallery, self._weight, self._k2 = gallery, weight, k2
        k1 = min(k1, graph.rows.shape[1])
        half = round(k1 / 2)
        own = np.arange(len(gallery))[:, None]
        self._near = np.concatenate([own, graph.rows[:, :k1]], axis=1)  # (m, 1 + k1)
        # How similar an image must be to be among the k1 nearest of a row, and among the k1 / 2 nearest.
        self._bounds = tuple(graph.values[:, max(k, 1) - 1] - _ROUNDING for k in (k1, half))
        certain = np.full((len(gallery), 1), np.inf, np.float32)  # each row is a neighbor of itself
        values = np.concatenate([certain, graph.values[:, :k1]], axis=1)
        self._half = self._reciprocal(self._near[:, : 1 + half], values[:, : 1 + half], self._bounds[1])
        neighborhoods = self._reciprocal(self._near, values, self._bounds[0])
        self._encoded = self._encode(lambda rows: gallery[rows], neighborhoods)
        self._averaged = self._average(self._near[:, :k2], None)

    def __call__(self, queries: np.ndarray, found: Neighbors) -> Neighbors:
        """Return the neighbors of queries in a new order, with their cosine similarities.

        Args:
            queries: (n, d) float32.
            found: their nearest gallery rows, at least k1 for the neighborhood of the paper; all are ranked again.
        """
        k1 = self._near.shape[1] - 1
        neighborhoods = self._reciprocal(found.rows[:, :k1], found.values[:, :k1], self._bounds[0])
        own = self._encode(lambda rows: queries[rows], neighborhoods)
        encoded = self._average(found.rows[:, : self._k2 - 1], own)
        distances = self._weight * (1 - found.values) + (1 - self._weight) * self._jaccard(encoded, found.rows)
        order = np.argsort(distances, axis=1, kind='stable')
        return Neighbors(*(np.take_along_axis(part, order, axis=1) for part in found))

    @staticmethod
    def _reciprocal(near: np.ndarray, values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """Return `near` (n, k), with -1 in the place of rows of which the image is not among the nearest."""
        return np.where(values >= bounds[near], near, -1)

    def _encode(self, features_of: Callable[[np.ndarray], np.ndarray], neighborhoods: np.ndarray) -> _Sparse:
        """Return the weights exp(cosine - 1) of each image's neighborhood, which is expanded before; they sum to 1.

        Args:
            features_of: rows -> features of the images.
            neighborhoods: (n, k) rows of the gallery, or -1.
        """
        parts = []
        for rows in _blocks(len(neighborhoods), neighborhoods.shape[1] ** 2 * self._half.shape[1]):
            members = self._expanded(neighborhoods[rows])
            owners, places = np.nonzero(members >= 0)
            columns = members[owners, places]
            weights = np.empty(len(columns), np.float32)
            for some in _blocks(len(columns), 2 * self._gallery.shape[1]):
                images, others = (
                    unit_length(features_of(rows.start + owners[some])),
                    unit_length(self._gallery[columns[some]]),
                )
                weights[some] = np.exp(np.einsum('nd,nd->n', images, others) - 1)
            counts = np.bincount(owners, minlength=len(members))
            weights /= np.bincount(owners, weights=weights, minlength=len(members))[owners]
            parts.append((counts, columns, weights))
        return _joined(parts)

    def _expanded(self, sets: np.ndarray) -> np.ndarray:
        """Return the sets (n, k) with those of their members, for half as many neighbors, that overlap by two thirds.

        Entries that are not used are -1, also in the result; the others of a row are in ascending order there.
        """
        theirs = np.where(sets[:, :, None] >= 0, self._half[sets], -1)  # (n, k, 1 + half)
        is_shared = np.zeros(theirs.shape, bool)
        for column in sets.T:  # k passes instead of an array k times as large
            is_shared |= theirs == column[:, None, None]
        is_shared &= theirs >= 0
        overlaps = 3 * is_shared.sum(axis=2) >= 2 * (theirs >= 0).sum(axis=2)
        theirs[~overlaps] = -1
        members = np.sort(np.concatenate([sets, theirs.reshape(len(sets), -1)], axis=1), axis=1)
        members[:, 1:][members[:, 1:] == members[:, :-1]] = -1
        return members

    def _average(self, near: np.ndarray, own: _Sparse | None) -> _Sparse:
        """Return the mean of the encodings of each image's nearest rows (n, k), and of `own`; it sums to 1."""
        parts = []
        number, width = near.shape[1] + (own is not None), len(self._gallery)
        for rows in _blocks(len(near), 4 * number * self._near.shape[1]):
            size = rows.stop - rows.start
            owners, positions = self._encoded.positions(near[rows].reshape(-1))
            owners //= max(1, near.shape[1])
            columns, values = self._encoded.columns[positions], self._encoded.values[positions]
            if own is not None:
                images, positions = own.positions(np.arange(rows.start, rows.stop))
                owners = np.concatenate([owners, images])
                columns = np.concatenate([columns, own.columns[positions]])
                values = np.concatenate([values, own.values[positions]])
            keys, places = np.unique(owners * width + columns, return_inverse=True)
            sums = np.bincount(places, weights=values).astype(np.float64)  # of nothing: integers
            owners, columns = np.divmod(keys, width)
            sums /= np.bincount(owners, weights=sums, minlength=size)[owners]
            parts.append((np.bincount(owners, minlength=size), columns, sums.astype(np.float32)))
        return _joined(parts)

    def _jaccard(self, encoded: _Sparse, candidates: np.ndarray) -> np.ndarray:
        """Return the Jaccard distances (n, k) between encoded images and rows of the gallery.

        Encodings sum to 1, so the sum of the larger values is 2 minus that of the smaller ones.
        """
        distances = np.empty(candidates.shape, np.float32)
        width, number = len(self._gallery), candidates.shape[1]
        for rows in _blocks(len(candidates), 8 * number * self._near.shape[1]):
            owners, positions = encoded.positions(np.arange(rows.start, rows.stop))
            # With a last key that is above all others.
            keys = np.append(owners * width + encoded.columns[positions], np.iinfo(np.int64).max)
            values = np.append(encoded.values[positions], 0)
            pairs, positions = self._averaged.positions(candidates[rows].reshape(-1))
            wanted = pairs // number * width + self._averaged.columns[positions]
            places = np.searchsorted(keys, wanted)
            smaller = np.where(
                keys[places] == wanted, np.minimum(values[places], self._averaged.values[positions]), 0.0
            )
            shared = np.bincount(pairs, weights=smaller, minlength=(rows.stop - rows.start) * number)
            distances[rows] = (1 - shared / (2 - shared)).reshape(-1, number)
        return distances


def reranked_search(
    method: str, gallery: np.ndarray, *, device: torch.device = CPU, search: Search = neighbor_blocks
) -> Search:
    """Return a search like `neighbor_blocks`, by cosine similarity, whose results are improved afterwards.

    Args:
        method: one of METHODS.
        gallery: (m, d) float32, the one that is searched.
        device: the one that searches.
        search: `neighbor_blocks`, maybe by several ranks.
    """
    if method not in METHODS:
        raise ValueError(f'method is {method}, but must be one of {", ".join(METHODS)}')
    ranking: ReciprocalRanking | None = None
    if method == 'reciprocal' and len(gallery) > 1:
        ranking = ReciprocalRanking(
            gallery, nearest(gallery, gallery, NUM_NEIGHBORS, exclude_self=True, device=device, search=search)
        )

    def expanded(
        queries: np.ndarray, gallery: np.ndarray, k: int, **options: Any
    ) -> Iterator[tuple[np.ndarray, Neighbors]]:
        larger = np.empty(queries.shape, np.float32)  # only the rows that are searched for are written
        for rows, found in search(queries, gallery, NUM_EXPANDED, **options):
            larger[rows] = expanded_queries(queries[rows], gallery, found)
        yield from search(larger, gallery, k, **options)

    def reciprocal(
        queries: np.ndarray, gallery: np.ndarray, k: int, **options: Any
    ) -> Iterator[tuple[np.ndarray, Neighbors]]:
        for rows, found in search(queries, gallery, max(k, NUM_CANDIDATES), **options):
            better = found if ranking is None else ranking(queries[rows], found)
            yield rows, Neighbors(better.rows[:, :k], better.values[:, :k])

    return {'query_expansion': expanded, 'reciprocal': reciprocal}[method]


def _joined(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> _Sparse:
    """Return the sparse rows of blocks (number of values of each row, columns, values)."""
    if not parts:
        return _Sparse(np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    counts, columns, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _Sparse(np.concatenate([[0], np.cumsum(counts)]), columns, values)


def _blocks(number: int, values_each: int) -> list[slice]:
    size = max(1, _BLOCK_VALUES // max(1, values_each))
    return [slice(start, min(start + size, number)) for start in range(0, number, size)]
