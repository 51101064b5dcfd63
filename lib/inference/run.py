"""One pass over a split: predictions, counts, metrics."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from lib.dataset.loader import Batch, EvalLoader
from lib.distributed.gather import gather_rows, own_rows
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.metrics.accuracy import ClassCounts
from lib.metrics.predictions import Predictions, answers_of_scores, join_predictions
from lib.metrics.scores import Scores, scores_of, scores_of_parts
from lib.model import Recognizer
from lib.runtime.log import progress_bar

LookAt = Callable[[Batch, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Evaluation:
    """What a pass over a split found.

    Attributes:
        metrics: loss, top1, top5, mean_class_error, many, medium, few; empty for a split without labels.
        answers: to each image, in input order.
        bad: (row, reason) of the images that could not be decoded.
    """

    metrics: dict[str, float]
    answers: Predictions
    bad: list[tuple[int, str]] = field(default_factory=list)

    @property
    def predicted(self) -> np.ndarray:
        """The class of each row, (num_images,) int64; -1 where the image could not be decoded."""
        return self.answers.predicted


@torch.inference_mode()
def evaluate(
    model: Recognizer,
    loader: EvalLoader,
    *,
    num_classes: int,
    train_counts: np.ndarray,
    label: str = 'valid',
    look_at: LookAt | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
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
    found = _Found(num_classes, device)
    for batch in progress_bar(loader, total=len(loader), label=label):
        features, logits = _look(model, batch)
        found.add(scores_of(logits, batch.labels), batch)
        if look_at:
            look_at(batch, features, logits)
    model.train(was_training)
    return found.evaluation(train_counts, group)


def _look(model: Recognizer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    features = model.features(batch.images)
    return features, model.classify(features)


@torch.inference_mode()
def evaluate_sharded(
    model: Recognizer,
    loader: EvalLoader,
    *,
    train_counts: np.ndarray,
    group: ProcessGroup,
    label: str = 'valid',
) -> Evaluation:
    """Do the same with a classifier of which each rank holds some classes: a batch is that of all ranks together.

    A rank whose images are all done goes on with none, since the others need its classes.
    """
    was_training = model.training
    model.eval()
    classifier, device = model.classifier, next(model.parameters()).device
    found = _Found(classifier.num_classes, device)
    batches = iter(loader)
    for number in progress_bar(range(loader.max_batches), total=loader.max_batches, label=label):
        batch, sizes = next(batches, None), loader.batch_sizes(number)
        features = torch.zeros(0, classifier.weight.shape[1], device=device)
        labels = torch.zeros(0, dtype=torch.int64, device=device)
        if batch is not None:
            features, labels = model.features(batch.images), batch.labels
        features, all_labels = gather_rows(features, sizes, group), gather_rows(labels, sizes, group)
        logits = model.classify(features)
        scores = scores_of_parts(logits, all_labels, classifier.classes, classifier.num_classes, group)
        if batch is not None:
            found.add(Scores(*(own_rows(part, sizes, group) for part in scores)), batch)
    model.train(was_training)
    return found.evaluation(train_counts, group)


class _Found:
    """What a rank has found so far; it stays on the device until the end, so that no batch waits for another."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._counts = ClassCounts(num_classes, device)
        # A rank may have no image at all.
        no_images = torch.zeros(0, num_classes, device=device), torch.zeros(0, dtype=torch.int64, device=device)
        self._scores, self._labels = [scores_of(*no_images)], [no_images[1]]
        self._readable = [torch.zeros(0, dtype=torch.bool, device=device)]
        self._bad: list[tuple[int, str]] = []

    def add(self, scores: Scores, batch: Batch) -> None:
        self._counts.add(scores, batch.labels, batch.readable)
        self._scores.append(scores)
        self._labels.append(batch.labels)
        self._readable.append(batch.readable)
        self._bad += batch.bad

    def evaluation(self, train_counts: np.ndarray, group: ProcessGroup) -> Evaluation:
        """Bring together what the ranks have found."""
        scores = Scores(*(torch.cat(parts) for parts in zip(*self._scores, strict=True)))
        own = answers_of_scores(scores, torch.cat(self._labels), torch.cat(self._readable))
        bad = [found for part in group.all_gather_objects(self._bad) for found in part]
        return Evaluation(
            self._counts.metrics(train_counts, group), join_predictions(group.all_gather_objects(own)), bad
        )
