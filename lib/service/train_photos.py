"""The nearest training photos of an answer: of each class in it, those with the most similar features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from lib.builders.data import open_training_data
from lib.commands.loaded_model import LoadedModel, split_features
from lib.inference.neighbors import nearest
from lib.report.galleries import reduced, thumbnail_jpeg

MAX_PER_CLASS = 512  # photos of a class that are compared, so that large classes take no longer
SIDE = 192  # pixels of a thumbnail


class TrainPhotos:
    """The training photos of a model, found by their features and shown as thumbnails.

    The features are those of tools/search.py: computed once, by a pass over the training images, and then read from
    RUN_FOLDER/features.
    """

    def __init__(self, trained: LoadedModel, per_answer: int) -> None:
        """Open the training split, and compute its features if needed.

        Args:
            per_answer: photos of each class in an answer.

        Raises:
            UserError: no training images, or of other classes than the model.
        """
        data = open_training_data(trained.cfg).in_class_order(trained.class_names)
        self._split, self._index = data.train, data.index()
        self._features = split_features(trained, self._split, 'train')
        self._label_of = {name: label for label, name in enumerate(trained.class_names)}
        self._per_answer = per_answer

    def nearest(self, features: np.ndarray, names: Sequence[Sequence[str]]) -> list[list[dict[str, Any]]]:
        """Return the nearest photos of each answer: by class as in the answer, then the most similar first.

        Args:
            features: (n, num_features) float32.
            names: names of the classes in each of n answers.

        Returns:
            For each answer, a list of {'row': of the photo, 'name': of its class, 'similarity': cosine}.
        """
        return [
            [found for name in answer for found in self._of_class(query[None], name)]
            for query, answer in zip(features, names, strict=True)
        ]

    def _of_class(self, query: np.ndarray, name: str) -> list[dict[str, Any]]:
        rows = self._index.rows_of(self._label_of[name])
        rows = rows[:: -(-len(rows) // MAX_PER_CLASS) or 1]
        rows = rows[self._features.readable[rows]]
        if not len(rows):
            return []
        found = nearest(query, self._features.values[rows], self._per_answer)
        pairs = zip(rows[found.rows[0]].tolist(), found.values[0].tolist(), strict=True)
        return [{'row': row, 'name': name, 'similarity': round(value, 4)} for row, value in pairs]

    def thumbnail(self, row: int) -> bytes:
        """Return a training photo as a small JPEG. Raises: IndexError, OSError, DecodeError."""
        if not 0 <= row < len(self._split):
            raise IndexError(row)
        image: Image.Image = reduced(self._split.images.open(row), SIDE)
        return thumbnail_jpeg(image, SIDE)
