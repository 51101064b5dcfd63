"""What a report is made from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from lib.metrics.predictions import Answers, predictions_alone

_NO_ROWS = np.zeros(0, np.int64)


@dataclass
class ReportData:
    """What a report shows; a part without its data is left out.

    Attributes:
        history: objects of metrics.jsonl.
        summary: {'best': {'epoch': 7, metrics}, 'last': {...}} of the valid split; figures that `answers` give as well
            are taken from these.
        class_names: (num_classes,); numbers where it is empty.
        class_parents: (num_classes,) ancestors of each class, root first; empty when unknown.
        train_counts: (num_classes,) int64, of the original training set; empty when unknown.
        answers: of the model to the valid split.
        open_image: row of the valid split -> RGB image; may raise.
        tau: content of tau.json.
        is_rebalanced: whether the answers are those of the re-balanced model.
        notes: warnings.
    """

    title: str
    command: str = ''
    history: Sequence[dict[str, Any]] = ()
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    class_parents: Sequence[Sequence[str]] = ()
    train_counts: np.ndarray = field(default_factory=_NO_ROWS.copy)
    answers: Answers = field(default_factory=lambda: predictions_alone(_NO_ROWS, _NO_ROWS))
    open_image: Callable[[int], Image.Image] | None = None
    tau: dict[str, Any] | None = None
    is_rebalanced: bool = False
    config_text: str = ''
    environment_text: str = ''
    notes: Sequence[str] = ()

    def name_of(self, label: int) -> str:
        """Return what to call a class."""
        return str(self.class_names[label]) if label < len(self.class_names) else f'class {label}'
