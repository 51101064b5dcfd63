"""Predictions as files: one row an image, in input order."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lib.dataset.loader import Batch
from lib.runtime.files import replacing, write_text
from lib.runtime.ranks import Ranks


def write_predictions(path: Path, names: Sequence[str], predicted: np.ndarray) -> None:
    """Write `id,predicted`; predicted is a category_id, -1 for an image that could not be decoded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(('id', 'predicted'))
    writer.writerows(zip(names, predicted.tolist(), strict=True))
    write_text(path, text.getvalue())


class Extras:
    """Collects what goes beyond the best class, batch by batch: pass `look_at` to evaluate().

    Args:
        top_k: classes an image; 0 for none.
        embeddings: whether features are kept (num_images * num_features * 4 bytes).
    """

    def __init__(self, top_k: int, embeddings: bool) -> None:
        self._top_k, self._embeddings = top_k, embeddings
        self._classes: list[np.ndarray] = []
        self._probabilities: list[np.ndarray] = []
        self._features: list[np.ndarray] = []

    def look_at(self, batch: Batch, features: torch.Tensor, logits: torch.Tensor) -> None:
        """Take a batch's features (batch, num_features) and logits (batch, num_classes)."""
        if self._top_k:
            best = logits.softmax(dim=1).topk(min(self._top_k, logits.shape[1]), dim=1)
            classes = torch.where(batch.readable[:, None], best.indices, -1)
            self._classes.append(classes.cpu().numpy())
            self._probabilities.append(best.values.cpu().numpy())
        if self._embeddings:
            self._features.append((features * batch.readable[:, None]).cpu().numpy())

    def join(self, ranks: Ranks) -> None:
        """Bring together what the ranks have looked at, each at its own images."""
        for kept in (self._classes, self._probabilities, self._features):
            kept[:] = [part for parts in ranks.gather(kept) for part in parts]

    def write(self, stem: Path, names: Sequence[str], class_names: Sequence[str]) -> list[Path]:
        """Write STEM_topK.csv (id, rank, category_id, probability, name) and STEM_features.npy; return their paths.

        Images that could not be decoded have no rows in the first, and zeros in the second.
        """
        written = []
        if self._top_k:
            written.append(stem.with_name(f'{stem.name}_top{self._top_k}.csv'))
            self._write_top(written[-1], names, class_names)
        if self._embeddings:
            written.append(stem.with_name(f'{stem.name}_features.npy'))
            with replacing(written[-1]) as temporary:
                np.save(temporary, np.concatenate(self._features).astype(np.float32))
        return written

    def _write_top(self, path: Path, names: Sequence[str], class_names: Sequence[str]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(('id', 'rank', 'category_id', 'probability', 'name'))
        classes, probabilities = np.concatenate(self._classes), np.concatenate(self._probabilities)
        for image, labels, chances in zip(names, classes.tolist(), probabilities.tolist(), strict=True):
            for rank, (label, chance) in enumerate(zip(labels, chances, strict=True), start=1):
                if label >= 0:
                    writer.writerow((image, rank, label, f'{chance:.6f}', class_names[label]))
        write_text(path, text.getvalue())
