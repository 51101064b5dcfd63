"""Classifiers too large for the logits of a batch: classifier and loss computed together."""

from collections.abc import Sequence

import torch
from torch import nn

from lib.distributed.gather import gather_features, gather_features_replicated, gather_rows, own_rows
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.loss.chunked import chunked_loss
from lib.loss.sampled_classes import sample_rows, take_rows
from lib.loss.sharded_logits import ClassSubset
from lib.loss.targets import Targets
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.trainer.forward import LossOutput, LossScale, ModelOutput


class ChunkedHead(nn.Module):
    """A few images at a time, maybe against a part of the classes, and on each rank those that it holds.

    Args:
        model: its classifier may hold a part of the classes, when `ranks` hold the others.
        loss: of single labels, averaged.
        chunk_images: at a time; 0: all.
        sampled_share: of the classes, drawn anew for each step (Partial FC: An et al., CVPR 2022); 1: all.
        ranks: that hold a part of the classes each; ALONE: every rank holds all.
    """

    def __init__(
        self,
        model: Recognizer,
        loss: WeightedLoss,
        *,
        chunk_images: int = 0,
        sampled_share: float = 1.0,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        super().__init__()
        # Not registered: the model is no part of the objective.
        object.__setattr__(self, '_model', model)
        self.loss = loss
        self._chunk_images, self._sampled_share, self._group = chunk_images, sampled_share, group

    def forward(self, outputs: ModelOutput, targets: Targets, share: LossScale) -> LossOutput:
        features = outputs.features
        looked_at = features if self.loss.loss.uses_features else None
        if self._group.world_size > 1:
            targets = _gather_targets(targets, share.sizes, self._group)
            looked_at = None if looked_at is None else gather_features_replicated(looked_at, share.sizes, self._group)
            features = gather_features(features, share.sizes, self._group)
        x, weight, bias = self._model.factors(features)
        columns = self._columns(targets, share.seed)
        if isinstance(columns.classes, torch.Tensor):
            rows = columns.classes - self._model.classifier.classes.start
            weight, bias = take_rows(weight, rows), None if bias is None else take_rows(bias, rows)

        def loss_of(logits: torch.Tensor, rows: slice, extra: torch.Tensor | None) -> torch.Tensor:
            return self.loss.total(logits, targets.part(rows), extra) / share.normalizer

        # A loss that draws (SEQL) draws alike on all ranks, since each computes the loss of all images.
        torch.manual_seed(share.seed)
        loss, predicted = chunked_loss(
            x, weight, bias, loss_of, chunk=self._chunk_images, extra=looked_at, subset=columns
        )
        if self._group.world_size == 1:
            return LossOutput(loss, predicted)
        # Every rank has the loss of all images.
        return LossOutput(loss / self._group.world_size, own_rows(predicted, share.sizes, self._group))

    def _columns(self, targets: Targets, seed: int) -> ClassSubset:
        """Return which classes the images are compared with on this rank."""
        classifier, gather = (
            self._model.classifier,
            self._group.all_gather if self._group.world_size > 1 else None,
        )
        classes = classifier.classes
        if self._sampled_share < 1:
            # Ranks that hold other classes draw other rows; those that hold the same draw the same.
            seed += self._group.rank
            classes = classes.start + sample_rows(targets.labels, classes, self._sampled_share, seed)
        return ClassSubset(classes, classifier.num_classes, gather)


def _gather_targets(targets: Targets, sizes: Sequence[int], group: ProcessGroup) -> Targets:
    return Targets(
        gather_rows(targets.labels, sizes, group),
        None if targets.shares is None else gather_rows(targets.shares, sizes, group),
        None if targets.weights is None else gather_rows(targets.weights, sizes, group),
    )
