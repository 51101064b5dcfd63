"""What a report is made from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

_NO_ROWS = np.zeros(0, np.int64)


@dataclass
class ReportData:
    """What a report shows; a part without its data is left out.

    history: objects of metrics.jsonl. summary: {'best': {'epoch': 7, metrics}, 'last': {...}}, valid split.
    train_counts: int64 (num_classes,), of the original training set. labels, predicted: integer (num_images,)
    of the valid split and the best model; -1 predicted is an unreadable image, -1 as label an unknown one.
    open_image: row of the valid split -> RGB image; may raise. tau: content of tau.json. notes: warnings.
    """

    title: str
    command: str = ''
    history: Sequence[dict[str, Any]] = ()
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    train_counts: np.ndarray = field(default_factory=_NO_ROWS.copy)
    labels: np.ndarray = field(default_factory=_NO_ROWS.copy)
    predicted: np.ndarray = field(default_factory=_NO_ROWS.copy)
    open_image: Callable[[int], Image.Image] | None = None
    tau: dict[str, Any] | None = None
    config_text: str = ''
    environment_text: str = ''
    notes: Sequence[str] = ()
