"""One pass over a split: predictions, counts, metrics."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from lib.dataset.loader import Batch, EvalLoader
from lib.evaluation.accuracy import ClassCounts
from lib.model import Recognizer
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
    flip: bool = False,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Run `model` over every image of `loader`; with several ranks, each over its own, once and without padding.

    Args:
        model: put into eval mode here, and back into what it was.
        train_counts: (num_classes,) original training counts, for many / medium / few.
        label: name of the split on the progress bar.
        look_at: called with each batch, its features (batch, num_features) and logits (batch, num_classes), both
            float32 on the device: for whoever needs more than the metrics.
        flip: also look at each image mirrored; features and logits are the means of both views.
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
        features, logits = _look(model, batch.images)
        if flip:
            mirrored = _look(model, batch.images.flip(-1))
            features, logits = (features + mirrored[0]) / 2, (logits + mirrored[1]) / 2
        predicted.append(counts.update(logits, batch.labels, batch.readable))
        bad += batch.bad
        if look_at:
            look_at(batch, features, logits)
    model.train(was_training)
    bad = [found for part in ranks.gather(bad) for found in part]
    return Evaluation(counts.metrics(train_counts, ranks), ranks.join(torch.cat(predicted).cpu().numpy()), bad)


def _look(model: Recognizer, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = model.features(images)
    return features, model.classify(features)
