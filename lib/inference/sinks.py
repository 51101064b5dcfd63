"""Sinks of a pass over a split: counts, predictions in memory, features and predictions in a store on disk."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from lib.dataset.pipeline import Batch
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError
from lib.inference.ensemble import EnsembleOutput
from lib.inference.forward import BatchOutput
from lib.metrics.accuracy import ClassCounts
from lib.metrics.predictions import (
    NUM_TOP,
    BatchPredictions,
    Predictions,
    batch_predictions,
    join_predictions,
)
from lib.runtime.column_store import ColumnStore

_LARGEST_HALF = float(np.finfo(np.float16).max)


class FeatureOverflow(UserError):
    """Features are larger than the largest number of float16."""


Columns = dict[str, tuple[type, tuple[int, ...]]]


def count_sink(counts: ClassCounts) -> Callable[[Batch, BatchOutput], None]:
    """Return the sink that adds each batch to `counts`."""

    def add(batch: Batch, output: BatchOutput) -> None:
        counts.add(output.predictions, batch.labels, batch.readable)

    return add


class PredictionSink:
    """Collects the predictions of this rank on the device until the end, so that no batch waits for the host."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        # A rank may have no image at all.
        labels = torch.zeros(0, dtype=torch.int64, device=device)
        self._batches = [batch_predictions(torch.zeros(0, num_classes, device=device), labels)]
        self._labels, self._readable = [labels], [labels.bool()]
        self._bad: list[tuple[int, str]] = []

    def __call__(self, batch: Batch, output: BatchOutput) -> None:
        """Add a batch."""
        self._batches.append(output.predictions)
        self._labels.append(batch.labels)
        self._readable.append(batch.readable)
        self._bad += batch.bad

    def gather(self, group: ProcessGroup) -> tuple[Predictions, list[tuple[int, str]]]:
        """Return the predictions of all ranks in input order, and (row, reason) of images that cannot be decoded."""
        joined = BatchPredictions(*(torch.cat(columns) for columns in zip(*self._batches, strict=True)))
        local = joined.to_host(torch.cat(self._labels), torch.cat(self._readable))
        bad = [entry for part in group.all_gather_objects(self._bad) for entry in part]
        return join_predictions(group.all_gather_objects(local)), bad


def feature_columns(num_features: int, dtype: str = 'float32') -> Columns:
    """Return the columns of a store of features; `dtype`: float32 or float16."""
    return {'features': (np.dtype(dtype).type, (num_features,)), 'readable': (bool, ())}


def feature_store_sink(store: ColumnStore) -> Callable[[Batch, BatchOutput], None]:
    """Return the sink that writes features into a store with `feature_columns`; zeros for unreadable images.

    It raises FeatureOverflow for features that float16 cannot hold.
    """
    is_half = store.columns['features'].dtype == np.float16

    def write(batch: Batch, output: BatchOutput) -> None:
        features = output.features.where(batch.readable[:, None], 0.0)
        if is_half:
            largest = float(features.abs().max())
            if largest > _LARGEST_HALF:
                raise FeatureOverflow(f'features of up to {largest:.3g} exceed the range of float16')
            features = features.half()
        values = {'features': features.cpu().numpy(), 'readable': batch.readable.cpu().numpy()}
        store.write(_rows(batch), values, batch.bad)

    return write


def prediction_columns(
    num_classes: int,
    *,
    top_k: int = 0,
    num_features: int = 0,
    with_plain: bool = False,
    num_members: int = 0,
    with_scores: bool = False,
) -> Columns:
    """Return the columns of a store of predictions; their names are a file format.

    Args:
        top_k: classes stored per image, at least the five that metrics need.
        num_features: width of the features that are stored; 0: none.
        with_plain: whether the class predicted from the plain view of the first member alone is stored too.
        num_members: number of members whose probability of the label is stored; 0: none.
        with_scores: whether a score of known products is stored, and the same without the class of the label.
    """
    num_top = min(max(top_k, NUM_TOP), num_classes)
    columns: Columns = {
        'best': (np.int32, (num_top,)),
        'probabilities': (np.float32, (num_top,)),
        'losses': (np.float32, ()),
    }
    if with_plain:
        columns['plain'] = (np.int32, ())
    if num_members:
        columns['chances'] = (np.float32, (num_members,))
    if num_features:
        columns['features'] = (np.float32, (num_features,))
    if with_scores:
        columns['scores'] = (np.float32, (2,))
    return columns


# Logits (batch, num_classes), features (batch, num_features), and the class that is left out of each image, or -1, to
# scores (batch,).
Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def prediction_store_sink(store: ColumnStore, score: Score | None = None) -> Callable[[Batch, EnsembleOutput], None]:
    """Return the sink that writes predictions into a store with `prediction_columns`: memory does not grow.

    `score`: of the column `scores`.
    """

    def write(batch: Batch, output: EnsembleOutput) -> None:
        values = _prediction_values(store.columns, batch, output)
        if score is not None:
            values['scores'] = _scores(score, batch, output)
        store.write(_rows(batch), values, batch.bad)

    return write


def stored_predictions(store: ColumnStore, labels: np.ndarray) -> Predictions:
    """Return the predictions in a complete store; labels (n,), -1 where unknown."""
    columns = store.columns
    topk = np.asarray(columns['best'][:, :NUM_TOP]).astype(np.int64)
    probabilities = np.asarray(columns['probabilities'][:, :NUM_TOP])
    return Predictions(labels.astype(np.int64), topk, probabilities, np.asarray(columns['losses']))


def _rows(batch: Batch) -> slice:
    return slice(int(batch.rows[0]), int(batch.rows[-1]) + 1)


def _scores(score: Score, batch: Batch, output: EnsembleOutput) -> np.ndarray:
    """Return the scores of a batch, and those without the class of the label, (batch, 2); nan if unreadable."""
    none, labels = torch.full_like(batch.labels, -1), batch.labels
    plain = score(output.logits, output.features, none)
    without = score(output.logits, output.features, labels) if bool((labels >= 0).any()) else plain
    scores = torch.stack([plain, without], dim=1)
    return scores.where(batch.readable[:, None], torch.nan).cpu().numpy()


def _prediction_values(
    columns: Mapping[str, np.ndarray], batch: Batch, output: EnsembleOutput
) -> dict[str, np.ndarray]:
    logits, readable = output.logits, batch.readable
    normalizers, top = logits.logsumexp(dim=1), logits.topk(columns['best'].shape[1], dim=1)
    target = batch.labels.clamp(min=0)[:, None]
    known = readable & (batch.labels >= 0)
    values = {
        'best': top.indices.where(readable[:, None], -1),
        'probabilities': (top.values - normalizers[:, None]).exp().where(readable[:, None], 0.0),
        # From the same normalizers as the probabilities; rounds differently from F.cross_entropy.
        'losses': (normalizers - logits.gather(1, target).squeeze(1)).where(known, torch.nan),
    }
    if 'plain' in columns:
        values['plain'] = output.plain_logits.topk(1, dim=1).indices[:, 0].where(readable, -1)
    if 'chances' in columns:
        of_labels = [one.log_softmax(dim=1).gather(1, target).squeeze(1).exp() for one in output.member_logits]
        values['chances'] = torch.stack(of_labels, dim=1).where(known[:, None], 0.0)
    if 'features' in columns:
        values['features'] = output.features.where(readable[:, None], 0.0)
    return {name: value.cpu().numpy() for name, value in values.items()}
