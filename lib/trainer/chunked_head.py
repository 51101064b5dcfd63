"""Classifier and loss computed together, for classifiers too large for the logits of a batch."""

from collections.abc import Sequence

import torch
from torch import nn

from lib.distributed.gather import gather_features, gather_features_replicated, gather_rows, local_rows
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.loss.chunked import chunked_loss
from lib.loss.sampled_classes import sample_rows, take_rows
from lib.loss.sharded_logits import ClassSubset, ShardedLogits
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.runtime.device import seed_generators
from lib.trainer.forward import LossOutput, LossScale, ModelOutput
from lib.trainer.samples import margins_of


class ChunkedHead(nn.Module):
    """Computes the logits of a few images at a time, of a sample of the classes, or of this rank's classes.

    Args:
        model: its classifier holds all classes, or this rank's shard of them.
        loss: weighted loss of the labels.
        chunk_images: images at a time; 0: all.
        sampled_fraction: fraction of the classes that each step draws (Partial FC: An et al., CVPR 2022); 1: all.
        group: ranks that hold a shard of the classes each; SINGLE_PROCESS: every rank holds all classes.
        with_margins: compute the margins of the labels, too; not with sampled classes.
    """

    _model: Recognizer

    def __init__(
        self,
        model: Recognizer,
        loss: WeightedLoss,
        *,
        chunk_images: int = 0,
        sampled_fraction: float = 1.0,
        group: ProcessGroup = SINGLE_PROCESS,
        with_margins: bool = False,
    ) -> None:
        super().__init__()
        # Not registered as a submodule: the model is no part of the objective.
        object.__setattr__(self, '_model', model)
        self.loss = loss
        self._chunk_images, self._sampled_fraction, self._group = chunk_images, sampled_fraction, group
        self._with_margins = with_margins

    def forward(self, outputs: ModelOutput, targets: Targets, scale: LossScale) -> LossOutput:
        features = outputs.features
        loss_features = features if self.loss.loss.uses_features else None
        if self._group.world_size > 1:
            targets = _gather_targets(targets, scale.sizes, self._group)
            if loss_features is not None:
                loss_features = gather_features_replicated(loss_features, scale.sizes, self._group)
            features = gather_features(features, scale.sizes, self._group)
        x, weight, bias = self._model.factors(features)
        subset = self._class_subset(targets, scale.seed)
        if isinstance(subset.classes, torch.Tensor):
            rows = subset.classes - self._model.classifier.classes.start
            weight, bias = take_rows(weight, rows), None if bias is None else take_rows(bias, rows)

        margins = torch.empty_like(targets.hard, dtype=torch.float32) if self._with_margins else None

        def loss_of(logits: ShardedLogits, rows: slice, extra: torch.Tensor | None) -> torch.Tensor:
            if margins is not None:  # before the loss overwrites the logits
                margins[rows] = margins_of(logits, targets.hard[rows])
            return self.loss.total(logits, targets.select(rows), extra) / scale.normalizer

        # A loss with random choices (SEQL) draws the same on all ranks, since each computes the loss of all images.
        seed_generators(scale.seed, x.device)
        loss, predicted = chunked_loss(
            x, weight, bias, loss_of, chunk=self._chunk_images, extra=loss_features, subset=subset
        )
        if self._group.world_size == 1:
            return LossOutput(loss, predicted, margins)
        # Every rank has the loss of all images.
        if margins is not None:
            margins = local_rows(margins, scale.sizes, self._group)
        return LossOutput(loss / self._group.world_size, local_rows(predicted, scale.sizes, self._group), margins)

    def _class_subset(self, targets: Targets, seed: int) -> ClassSubset:
        """Return the classes whose logits this rank computes."""
        classifier = self._model.classifier
        gather = self._group.all_gather if self._group.world_size > 1 else None
        classes: range | torch.Tensor = classifier.classes
        if self._sampled_fraction < 1:
            # Ranks that hold other classes sample other rows; ranks that hold the same classes sample the same rows.
            seed += self._group.rank
            rows = sample_rows(targets.labels, classifier.classes, self._sampled_fraction, seed)
            classes = classifier.classes.start + rows
        return ClassSubset(classes, classifier.num_classes, gather)


def _gather_targets(targets: Targets, sizes: Sequence[int], group: ProcessGroup) -> Targets:
    return Targets(
        gather_rows(targets.labels, sizes, group),
        None if targets.lam is None else gather_rows(targets.lam, sizes, group),
        None if targets.weights is None else gather_rows(targets.weights, sizes, group),
    )
