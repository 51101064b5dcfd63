"""The computation of each batch of a split: by one network on this rank's images, or by a sharded classifier."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import torch

from lib.dataset.loader import EvalLoader
from lib.dataset.pipeline import Batch
from lib.distributed.gather import gather_rows, local_rows
from lib.distributed.process_group import ProcessGroup
from lib.inference.engine import Engine
from lib.metrics.predictions import BatchPredictions, batch_predictions, sharded_batch_predictions

Output = TypeVar('Output', covariant=True)


class Forward(Protocol[Output]):
    """The batches of a loader with what is computed from each.

    Attributes:
        loader: its batch slices are those of the pass.
        num_steps: batches of a whole pass, the same on all ranks where these compute together.
    """

    @property
    def loader(self) -> EvalLoader: ...

    @property
    def num_steps(self) -> int: ...

    def inference(self) -> AbstractContextManager[None]:
        """Return a context in which the networks compute as in validation."""

    def outputs(self, slices: Sequence[slice]) -> Iterator[tuple[Batch, Output] | None]:
        """Yield each batch and its output; None for a step that only takes part in what other ranks compute."""


class BatchOutput:
    """The output of a network for one batch; logits and predictions are computed when a sink first reads them.

    Attributes:
        features: (batch, num_features) float32, on the device.
    """

    def __init__(self, engine: Engine, batch: Batch, features: torch.Tensor) -> None:
        self.features = features
        self._engine, self._labels = engine, batch.labels

    @cached_property
    def logits(self) -> torch.Tensor:
        """Float32 logits of the classes that the engine holds, (batch, len(engine.classes))."""
        return self._engine.logits(self.features)

    @cached_property
    def predictions(self) -> BatchPredictions:
        """The predictions over all classes."""
        return batch_predictions(self.logits, self._labels)


class _ShardedOutput(BatchOutput):
    """The output of a sharded classifier, whose predictions all ranks have computed together."""

    def __init__(self, engine: Engine, batch: Batch, features: torch.Tensor, predictions: BatchPredictions) -> None:
        super().__init__(engine, batch, features)
        self.predictions = predictions


@dataclass(frozen=True)
class SingleForward:
    """One network, which holds all classes, over the images of this rank."""

    engine: Engine
    loader: EvalLoader

    @property
    def num_steps(self) -> int:
        """Batches of this rank."""
        return len(self.loader)

    def inference(self) -> AbstractContextManager[None]:
        """Return the engine's context."""
        return self.engine.inference()

    def outputs(self, slices: Sequence[slice]) -> Iterator[tuple[Batch, BatchOutput]]:
        """Yield each batch with its features."""
        for batch in self.loader.batches(slices):
            yield batch, BatchOutput(self.engine, batch, self.engine.features(batch.images))


@dataclass(frozen=True)
class ShardedForward:
    """A network whose classifier is sharded over the ranks: they classify the batches of all ranks together.

    A rank without further images takes part in the remaining steps, since the others need the logits of its classes.
    """

    engine: Engine
    loader: EvalLoader
    group: ProcessGroup

    @property
    def num_steps(self) -> int:
        """The most batches that any rank has."""
        return self.loader.max_batches

    def inference(self) -> AbstractContextManager[None]:
        """Return the engine's context."""
        return self.engine.inference()

    def outputs(self, slices: Sequence[slice]) -> Iterator[tuple[Batch, BatchOutput] | None]:
        """Yield each batch with its features and predictions; all ranks must pass all their slices."""
        engine, group = self.engine, self.group
        batches = self.loader.batches(slices)
        for number in range(self.num_steps):
            batch, sizes = next(batches, None), self.loader.batch_sizes(number)
            features = torch.zeros(0, engine.num_features, device=engine.device)
            labels = torch.zeros(0, dtype=torch.int64, device=engine.device)
            if batch is not None:
                features, labels = engine.features(batch.images), batch.labels
            all_features, all_labels = gather_rows(features, sizes, group), gather_rows(labels, sizes, group)
            logits = engine.logits(all_features)
            found = sharded_batch_predictions(logits, all_labels, engine.classes, engine.num_classes, group)
            if batch is None:
                yield None
            else:
                own = BatchPredictions(*(local_rows(part, sizes, group) for part in found))
                yield batch, _ShardedOutput(engine, batch, features, own)
