"""One pass over a split: predictions, counts, metrics."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from lib.dataset.loader import Batch, EvalLoader
from lib.evaluation.accuracy import ClassCounts
from lib.evaluation.scores import Scores, scores_of_parts
from lib.model import Recognizer
from lib.runtime.gather import gather_rows, own_rows
from lib.runtime.log import progress
from lib.runtime.ranks import ALONE, Ranks

LookAt = Callable[[Batch, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Evaluation:
    """What a pass over a split found.

    Attributes:
        metrics: loss, top1, top5, mean_class_error, many, medium, few; empty for a split without labels.
        predicted: (num_images,) int64 class of each row; -1 where the image could not be decoded.
        bad: (row, reason) of those.
    """

    metrics: dict[str, float]
    predicted: np.ndarray
    bad: list[tuple[int, str]] = field(default_factory=list)


@torch.inference_mode()
def evaluate(
    model: Recognizer,
    loader: EvalLoader,
    *,
    num_classes: int,
    train_counts: np.ndarray,
    label: str = 'valid',
    look_at: LookAt | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Run `model` over every image of `loader`; with several ranks, each over its own, once and without padding.

    Args:
        model: put into eval mode here, and back into what it was.
        train_counts: (num_classes,) original training counts, for many / medium / few.
        label: name of the split on the progress bar.
        look_at: called with each batch, its features (batch, num_features) and logits (batch, num_classes), both
            float32 on the device: for whoever needs more than the metrics.
        ranks: that share the images, as the loader does. All of them get the whole result.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    counts = ClassCounts(num_classes, device)
    # A rank may have no image at all.
    predicted = [torch.zeros(0, dtype=torch.int64, device=device)]
    bad: list[tuple[int, str]] = []
    for batch in progress(loader, total=len(loader), label=label):
        features = model.features(batch.images)
        logits = model.classify(features)
        predicted.append(counts.update(logits, batch.labels, batch.readable))
        bad += batch.bad
        if look_at:
            look_at(batch, features, logits)
    model.train(was_training)
    return _evaluation(counts, predicted, bad, train_counts, ranks)


@torch.inference_mode()
def evaluate_sharded(
    model: Recognizer, loader: EvalLoader, *, train_counts: np.ndarray, ranks: Ranks, label: str = 'valid'
) -> Evaluation:
    """Do the same with a classifier of which each rank holds some classes: a batch is that of all ranks together.

    A rank whose images are all done goes on with none, since the others need its classes.
    """
    was_training = model.training
    model.eval()
    classifier, device = model.classifier, next(model.parameters()).device
    counts = ClassCounts(classifier.num_classes, device)
    predicted = [torch.zeros(0, dtype=torch.int64, device=device)]
    bad: list[tuple[int, str]] = []
    batches = iter(loader)
    for number in progress(range(loader.max_batches), total=loader.max_batches, label=label):
        batch, sizes = next(batches, None), loader.sizes(number)
        features = torch.zeros(0, classifier.weight.shape[1], device=device)
        labels, readable = torch.zeros(0, dtype=torch.int64, device=device), None
        if batch is not None:
            features, labels, readable = model.features(batch.images), batch.labels, batch.readable
            bad += batch.bad
        features, all_labels = gather_rows(features, sizes, ranks), gather_rows(labels, sizes, ranks)
        logits = model.classify(features)
        scores = scores_of_parts(logits, all_labels, classifier.classes, classifier.num_classes, ranks)
        if batch is not None:
            own = Scores(*(own_rows(part, sizes, ranks) for part in scores))
            predicted.append(counts.add(own, labels, readable))
    model.train(was_training)
    return _evaluation(counts, predicted, bad, train_counts, ranks)


def _evaluation(
    counts: ClassCounts,
    predicted: list[torch.Tensor],
    bad: list[tuple[int, str]],
    train_counts: np.ndarray,
    ranks: Ranks,
) -> Evaluation:
    """Bring together what the ranks have found."""
    bad = [found for part in ranks.gather(bad) for found in part]
    return Evaluation(counts.metrics(train_counts, ranks), ranks.join(torch.cat(predicted).cpu().numpy()), bad)
