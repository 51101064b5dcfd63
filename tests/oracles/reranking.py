"""Slow alpha query expansion, and k-reciprocal re-ranking with sets and dense vectors, of one query at a time."""

import numpy as np


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def expanded(query, gallery, number, power):
    """Radenovic et al., TPAMI 2019, section 3.4."""
    query, gallery = unit(query.astype(float)), unit(gallery.astype(float))
    similar = gallery @ query
    near = np.argsort(-similar)[:number]
    return unit(query + sum(max(similar[i], 0.0) ** power * gallery[i] for i in near))


class ReciprocalGallery:
    """Zhong et al., CVPR 2017, section 3, with distances 1 - cosine; a row is its first neighbor."""

    def __init__(self, vectors, k1, k2):
        self.vectors, self.k1, self.k2 = unit(vectors.astype(float)), k1, k2
        self.similar = self.vectors @ self.vectors.T
        rows = range(len(vectors))
        self.order = [[i, *sorted((j for j in rows if j != i), key=lambda j: -self.similar[i, j])] for i in rows]
        self.encoded = np.array([self.encode(self.similar[i], self.reciprocal(i, k1)) for i in rows])
        self.averaged = np.array([self.encoded[self.order[i][:k2]].mean(axis=0) for i in rows])

    def near(self, i, k):
        return set(self.order[i][: k + 1])

    def reciprocal(self, i, k):
        return {j for j in self.near(i, k) if i in self.near(j, k)}

    def encode(self, similar, members):
        """Equations 5 to 7."""
        extended = set(members)
        for j in members:
            theirs = self.reciprocal(j, round(self.k1 / 2))
            if len(theirs & members) >= 2 / 3 * len(theirs):
                extended |= theirs
        vector = np.zeros(len(self.vectors))
        for j in extended:
            vector[j] = np.exp(similar[j] - 1)
        return vector / vector.sum() if extended else vector

    def ranked(self, query, weight):
        """Return the rows of the gallery, the nearest first, and the final distance of each row."""
        similar = self.vectors @ unit(query.astype(float))
        nearest = np.argsort(-similar)[: self.k1]
        members = {j for j in nearest if similar[j] >= self.similar[j, self.order[j][self.k1]]}
        parts = [self.encode(similar, members), *self.encoded[nearest[: self.k2 - 1]]]
        mean = sum(parts)
        if mean.sum() > 0:
            mean = mean / mean.sum()
        shared = np.minimum(mean, self.averaged).sum(axis=1)
        jaccard = 1 - shared / np.maximum(mean, self.averaged).sum(axis=1)
        distances = (1 - weight) * jaccard + weight * (1 - similar)
        return np.argsort(distances, kind='stable'), distances
