"""Predictions of a split, batch by batch into a store on the disk: memory does not grow with the images."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from lib.inference.ensemble import EnsembleMember, EnsembleOutput, combine
from lib.metrics.predictions import Predictions
from lib.metrics.scores import NUM_BEST
from lib.runtime.column_store import ColumnStore
from lib.runtime.log import progress_bar

Columns = dict[str, tuple[type, tuple[int, ...]]]


def prediction_columns(
    num_classes: int, *, top_k: int = 0, num_features: int = 0, compares: bool = False, num_members: int = 0
) -> Columns:
    """Return the columns of a store of predictions.

    Args:
        top_k: classes that are kept of each image, at least the five that metrics need.
        num_features: width of the features that are kept; 0: none are.
        compares: whether what the plain view of the first member alone predicts is kept too.
        num_members: how many members' probabilities of the label are kept; 0: none are.
    """
    num_best = min(max(top_k, NUM_BEST), num_classes)
    columns: Columns = {
        'best': (np.int32, (num_best,)),
        'probabilities': (np.float32, (num_best,)),
        'losses': (np.float32, ()),
    }
    if compares:
        columns['plain'] = (np.int32, ())
    if num_members:
        columns['chances'] = (np.float32, (num_members,))
    if num_features:
        columns['features'] = (np.float32, (num_features,))
    return columns


@torch.inference_mode()
def fill_predictions(
    members: Sequence[EnsembleMember], store: ColumnStore, weights: Sequence[float], average: str, *, label: str
) -> None:
    """Predict the images of this rank that are not in a store with columns of `prediction_columns` yet.

    Batches are those of an uninterrupted pass, so that its numbers are too.
    """
    for member in members:
        member.model.eval()
    loader = members[0].loader
    parts = [rows for rows in loader.batch_slices() if not store.done[rows].all()]
    looks = zip(*(member.loader.views(parts) for member in members), strict=True)
    for rows, views in progress_bar(
        zip(parts, looks, strict=True), total=len(loader), label=label, start=len(loader) - len(parts)
    ):
        batch = views[0][0]
        found = combine(members, views, weights, average)
        # An image that one view or member cannot decode, none can.
        values = _values(store.columns, found, batch.labels, batch.readable)
        store.write(rows, values, batch.bad)
    store.flush()


def stored_predictions(store: ColumnStore, labels: np.ndarray) -> Predictions:
    """Return what a complete store answers, with labels (n,), -1 where unknown."""
    columns = store.columns
    best = np.asarray(columns['best'][:, :NUM_BEST]).astype(np.int64)
    confidence, losses = np.asarray(columns['probabilities'][:, 0]), np.asarray(columns['losses'])
    return Predictions(labels.astype(np.int64), best, confidence, losses)


def _values(
    columns: Mapping[str, np.ndarray], found: EnsembleOutput, labels: torch.Tensor, readable: torch.Tensor
) -> dict[str, np.ndarray]:
    logits, num_best = found.logits, columns['best'].shape[1]
    sums, (values, best) = logits.logsumexp(dim=1), logits.topk(num_best, dim=1)
    target = labels.clamp(min=0)[:, None]
    known = readable & (labels >= 0)
    made = {
        'best': best.where(readable[:, None], -1),
        'probabilities': (values - sums[:, None]).exp().where(readable[:, None], 0.0),
        'losses': (sums - logits.gather(1, target).squeeze(1)).where(known, torch.nan),
    }
    if 'plain' in columns:
        made['plain'] = found.plain.topk(1, dim=1).indices[:, 0].where(readable, -1)
    if 'chances' in columns:
        chances = [own.log_softmax(dim=1).gather(1, target).squeeze(1).exp() for own in found.of_members]
        made['chances'] = torch.stack(chances, dim=1).where(known[:, None], 0.0)
    if 'features' in columns:
        made['features'] = found.features.where(readable[:, None], 0.0)
    return {name: value.cpu().numpy() for name, value in made.items()}
