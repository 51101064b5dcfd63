"""Nearest neighbors of images among the members of their candidate classes, and their votes for each of these classes.

Exact search among n images costs O(n^2). A neighbor that speaks for or against a label has that label or another class
that the classifier considers, so only those are searched: n (K + 1) MAX_MEMBERS distances, memory O(n k). No image is
its own neighbor.
"""

import numpy as np
import torch

from lib.dataset.index import ranks_in_classes
from lib.posthoc.judged_images import JudgedImages, row_blocks

NUM_NEIGHBORS = 10  # k
MAX_MEMBERS = 24  # of a class that are searched
_TEMPERATURE = 0.07  # of similarities (Wu et al., CVPR 2018, section 3.4)
_PRIOR = 1.0  # votes of NUM_NEIGHBORS that every class has beforehand
_LEAST_MEMBERS = 1.0
_ROWS = 1 << 16  # images at a time


class NeighborSearch:
    """Finds the nearest of up to MAX_MEMBERS images of each class, drawn at random.

    Args:
        images: features and labels.
        spread: mean squared distance of the unit features from their mean, by which similarities are divided.
    """

    def __init__(self, images: JudgedImages, spread: float) -> None:
        self._images = images
        drawn = np.random.default_rng(0).permutation(len(images))
        ranks = ranks_in_classes(images.labels[drawn])
        drawn, ranks = drawn[ranks < MAX_MEMBERS], ranks[ranks < MAX_MEMBERS]
        self._members = np.full((images.num_classes, int(ranks.max(initial=0)) + 1), -1, np.int32)
        self._members[images.labels[drawn], ranks] = drawn
        self._scales = np.empty(len(images), np.float32)  # that divide by length and spread
        for some in row_blocks(np.arange(len(images)), images.num_features):
            lengths = np.linalg.norm(images.values[images.rows[some]].astype(np.float32), axis=1)
            self._scales[some] = 1 / (np.maximum(lengths, 1e-12) * max(spread, 1e-6))

    def nearest(
        self, features: torch.Tensor, positions: np.ndarray, classes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the neighbors of some images, the nearest first, and their cosine similarities / spread.

        Args:
            features: (m, num_features), of length 1.
            positions: (m,) of these images.
            classes: (m, K) their candidates, the best first.

        Returns:
            (m, NUM_NEIGHBORS) int32 positions, -1 for none, and float32.
        """
        neighbors = np.full((len(positions), NUM_NEIGHBORS), -1, np.int32)
        similarities = np.full(neighbors.shape, -np.inf, np.float32)
        labels = self._images.labels[positions]
        width = (classes.shape[1] + 1) * self._members.shape[1] * self._images.num_features
        for some in row_blocks(np.arange(len(positions)), width):
            of_candidates = self._members[classes[some]]
            of_candidates[classes[some] == labels[some, None]] = -1  # the label is searched anyway
            members = np.concatenate([of_candidates, self._members[labels[some], None]], axis=1)
            members = members.reshape(len(some), -1)
            members[members == positions[some, None]] = -1
            values = torch.from_numpy(self._images.values[self._images.rows[members]]).to(features.device)
            products = torch.bmm(values.float(), features[some, :, None])[:, :, 0].cpu().numpy()
            similar = torch.from_numpy(np.where(members < 0, -np.inf, products * self._scales[members]))
            best = similar.topk(min(NUM_NEIGHBORS, members.shape[1]), dim=1)
            columns = best.indices.numpy()
            neighbors[some, : columns.shape[1]] = np.take_along_axis(members, columns, 1)
            similarities[some, : columns.shape[1]] = best.values.numpy()
        return neighbors, similarities


def votes_for_classes(
    neighbors: np.ndarray, similarities: np.ndarray, labels: np.ndarray, classes: np.ndarray, trust: np.ndarray
) -> np.ndarray:
    """Return the fraction of the votes of each image's neighbors for its candidates and, last, its label.

    A neighbor has trust exp(similarity / temperature) votes, divided by the number of images with its label among which
    it was found, each counted by its trust: the fraction of a class does not depend on its size.

    Args:
        neighbors, similarities: (n, k), from NeighborSearch.
        labels: (n,) int64.
        classes: (n, K), none below 0.
        trust: (n,) weight of each image as a neighbor, between 0 and 1.

    Returns:
        (n, K + 1) float16.
    """
    fractions = np.zeros((len(labels), classes.shape[1] + 1), np.float16)
    counts, trusted = np.bincount(labels), np.bincount(labels, trust)
    members = np.minimum(counts, MAX_MEMBERS) * trusted / np.maximum(counts, 1)
    for start in range(0, len(labels), _ROWS):
        part = slice(start, start + _ROWS)
        found, similar = neighbors[part], similarities[part]
        label, asked = labels[found], np.concatenate([classes[part], labels[part, None]], axis=1)
        others = members[label] * (1 - (label == labels[part, None]) / counts[label])
        top = similar.max(axis=1, keepdims=True, initial=-1e4)
        votes = np.exp((similar - top) / _TEMPERATURE) * trust[found] / np.maximum(others, _LEAST_MEMBERS)
        votes = np.where(found >= 0, votes, 0).astype(np.float32)
        votes /= np.maximum(votes.sum(axis=1, keepdims=True), 1e-30)
        fractions[part] = np.einsum('nqk,nk->nq', asked[:, :, None] == label[:, None, :], votes)
    return fractions


def log_votes(fractions: np.ndarray) -> np.ndarray:
    """Return the logarithm of fractions of votes, of which every class has a few beforehand."""
    return np.log(fractions.astype(np.float32) + _PRIOR / NUM_NEIGHBORS)
