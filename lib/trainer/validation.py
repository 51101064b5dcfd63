"""Validation during training: metrics of the model, or of its EMA, on the validation split."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.dataset.loader import EvalLoader
from lib.distributed.parallel import sync_buffers
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.inference.engine import EagerEngine, Engine, HeadEngine
from lib.inference.run import Evaluation, evaluate
from lib.model import Recognizer
from lib.trainer.train_state import TrainState


@dataclass(frozen=True)
class Validator:
    """Evaluates models on the validation split.

    Attributes:
        loader: loader of the validation split.
        names: name of each image.
        train_counts: (num_classes,) images per class of the original training set, for many, medium and few.
        group: ranks that share the images.
        at_test_size: returns a model for images of another size than in training, with the same weights, resampled;
            None: the model takes both sizes.
        takes_features: the loader yields stored features in place of images.
        engine_of: returns the engine of a model whose weights are final.
    """

    loader: EvalLoader
    names: Sequence[Any]
    train_counts: np.ndarray
    group: ProcessGroup = SINGLE_PROCESS
    at_test_size: Callable[[Recognizer], Recognizer] | None = None
    takes_features: bool = False
    engine_of: Callable[[Recognizer], Engine] = EagerEngine

    def evaluate(
        self, model: Recognizer, check: Callable[[], None] = lambda: None, *, is_final: bool = False
    ) -> Evaluation:
        """Evaluate a model.

        Args:
            check: called after each batch; it may raise to end the pass.
            is_final: the weights do not change any more, so that a conversion for another engine may pay off.
        """
        engine = HeadEngine if self.takes_features else self.engine_of if is_final else EagerEngine
        return evaluate(
            engine(model if self.at_test_size is None else self.at_test_size(model)),
            self.loader,
            train_counts=self.train_counts,
            sinks=[lambda batch, output: check()],
            group=self.group,
        )

    def metrics(self, state: TrainState, check: Callable[[], None]) -> tuple[dict[str, float], Evaluation]:
        """Evaluate the EMA, or the model without one; metrics include images_per_second and seconds."""
        started = time.perf_counter()
        with nullcontext() if state.ema is None else state.ema.swapped(), state.unsharded():
            if self.group.world_size > 1:
                sync_buffers(state.model, self.group, constant=state.model.constant_names())
            evaluation = self.evaluate(state.model, check)
        seconds = time.perf_counter() - started
        speed = {'images_per_second': len(self.names) / seconds, 'seconds': seconds}
        return {**evaluation.metrics, **speed}, evaluation

    def bad_images(self, evaluation: Evaluation) -> dict[str, str]:
        """Return the undecodable images, {name: reason}."""
        return {str(self.names[row]): reason for row, reason in evaluation.bad}
