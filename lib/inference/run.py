"""One pass over a split: the loop that evaluation, prediction, feature extraction and class means share.

Stored features need no pass: a classifier on top of them takes seconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lib.dataset.features import Features
from lib.dataset.loader import EvalLoader
from lib.dataset.pipeline import Batch
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.inference.engine import Engine
from lib.inference.forward import BatchOutput, Forward, Output, ShardedForward, SingleForward
from lib.inference.sinks import PredictionSink, count_sink
from lib.metrics.accuracy import ClassCounts
from lib.metrics.predictions import Predictions, join_predictions, predictions_from_logits
from lib.runtime.column_store import ColumnStore
from lib.runtime.log import progress_bar

BatchSink = Callable[[Batch, BatchOutput], None]


def run(
    forward: Forward[Output],
    sinks: Sequence[Callable[[Batch, Output], None]],
    *,
    label: str,
    store: ColumnStore | None = None,
) -> None:
    """Run a network over the images of this rank and pass each batch with its output to the sinks.

    Networks are in eval mode meanwhile, without gradients; their mode is restored afterwards.

    Args:
        sinks: called in this order for every batch.
        label: name of the split on the progress bar.
        store: the store that a sink writes. Batches whose rows are done are left out; the others hold the same rows as
            in an uninterrupted pass, so their values are equal too. It is flushed at the end.
    """
    slices = forward.loader.batch_slices()
    if store is not None:
        slices = [rows for rows in slices if not store.done[rows].all()]
    first = len(forward.loader) - len(slices)
    with forward.inference():
        steps = forward.outputs(slices)
        for step in progress_bar(steps, total=forward.num_steps, label=label, start=first):
            if step is not None:
                for sink in sinks:
                    sink(*step)
    if store is not None:
        store.flush()


@dataclass(frozen=True)
class Evaluation:
    """The result of a pass over a split.

    Attributes:
        metrics: loss, top1, top5, mean_class_error, many, medium, few; empty for a split without labels.
        predictions: predictions of all images, in input order.
        bad: (row, reason) of the images that could not be decoded.
    """

    metrics: dict[str, float]
    predictions: Predictions
    bad: list[tuple[int, str]] = field(default_factory=list)

    @property
    def predicted(self) -> np.ndarray:
        """The predicted class of each row, (num_images,) int64; -1 where the image could not be decoded."""
        return self.predictions.predicted


@torch.inference_mode()
def evaluate(
    engine: Engine,
    loader: EvalLoader,
    *,
    train_counts: np.ndarray,
    label: str = 'valid',
    sinks: Sequence[BatchSink] = (),
    group: ProcessGroup = SINGLE_PROCESS,
) -> Evaluation:
    """Predict every image of a split and compute the metrics; several ranks share the images, without padding.

    Args:
        engine: its classifier holds all classes, or is sharded over the ranks.
        train_counts: (num_classes,) original training counts, for many, medium and few.
        label: name of the split on the progress bar.
        sinks: called with each batch and its output in addition, for features or logits.
        group: the ranks that share the images, as the loader does; all of them get the whole result.
    """
    is_sharded = len(engine.classes) < engine.num_classes
    forward = ShardedForward(engine, loader, group) if is_sharded else SingleForward(engine, loader)
    counts = ClassCounts(engine.num_classes, engine.device)
    collected = PredictionSink(engine.num_classes, engine.device)
    run(forward, [count_sink(counts), collected, *sinks], label=label)
    predictions, bad = collected.gather(group)
    return Evaluation(counts.metrics(train_counts, group), predictions, bad)


_MAX_LOGITS = 2**24  # computed at once: 64 MB


def logit_batch_size(num_classes: int, num_images: int = 2**31) -> int:
    """Return how many images to classify at once, so that the memory of their logits is bounded."""
    return max(1, min(num_images, 512, _MAX_LOGITS // num_classes))


def classify_features(engine: Engine, features: Features) -> Predictions:
    """Predict images from their features, without storing logits."""
    size = logit_batch_size(engine.num_classes)
    with engine.inference():
        return join_predictions(
            [
                predictions_from_logits(engine.logits(values), labels, readable)
                for values, labels, readable in features.batches(size, engine.device)
            ]
        )
