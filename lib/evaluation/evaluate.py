"""One pass over a split: predictions, counts, metrics."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from lib.dataset.loader import Batch, EvalLoader
from lib.evaluation.accuracy import ClassCounts
from lib.model import Recognizer
from lib.runtime.log import progress

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
    flip: bool = False,
) -> Evaluation:
    """Run `model` over every image of `loader`.

    Args:
        model: put into eval mode here, and back into what it was.
        train_counts: (num_classes,) original training counts, for many / medium / few.
        label: name of the split on the progress bar.
        look_at: called with each batch, its features (batch, num_features) and logits (batch, num_classes), both
            float32 on the device: for whoever needs more than the metrics.
        flip: also look at each image mirrored; features and logits are the means of both views.
    """
    was_training = model.training
    model.eval()
    counts: ClassCounts | None = None
    predicted, bad = [], []
    for batch in progress(loader, total=len(loader), label=label):
        features, logits = _look(model, batch.images)
        if flip:
            mirrored = _look(model, batch.images.flip(-1))
            features, logits = (features + mirrored[0]) / 2, (logits + mirrored[1]) / 2
        counts = counts or ClassCounts(num_classes, logits.device)
        predicted.append(counts.update(logits, batch.labels, batch.readable))
        bad += batch.bad
        if look_at:
            look_at(batch, features, logits)
    model.train(was_training)
    metrics = counts.metrics(train_counts) if counts else {}
    return Evaluation(metrics, torch.cat(predicted).cpu().numpy(), bad)


def _look(model: Recognizer, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = model.features(images)
    return features, model.classify(features)
