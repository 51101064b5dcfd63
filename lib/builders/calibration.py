"""The images by which int8 is calibrated: training images of all classes, else validation images."""

from collections.abc import Sequence

import numpy as np
import torch

from lib.builders.data import open_training_data, open_valid_split
from lib.builders.loader import plain_view
from lib.builders.split import DatasetSplit
from lib.config.defaults import Config
from lib.dataset.index import ranks_in_classes
from lib.dataset.reader import BatchReader, BatchRequest
from lib.dataset.transforms import Transform
from lib.errors import UserError
from lib.runtime.log import LOGGER
from lib.runtime.text import count_of

_FEWEST, _MOST = 300, 512  # images


def calibration_pixels(
    cfg: Config, class_names: Sequence[str], view: Transform | None = None
) -> tuple[torch.Tensor, str]:
    """Return the images by which int8 is calibrated, uint8 RGB (n, size, size, 3), and their source.

    They are 300 to 512 images with as equal numbers per class as possible, drawn by SEED.

    Args:
        class_names: class names of the model.
        view: the crop; default: that of validation.

    Raises:
        UserError: there are neither training nor validation images, or none can be decoded.
    """
    try:
        data = open_training_data(cfg).in_class_order(class_names)
        split, rows = data.train, data.train_rows
    except UserError as error:
        split, rows = open_valid_split(cfg, class_names), None
        LOGGER.warning('int8 is calibrated on validation images, so its loss on them looks small: %s', error)
    number = min(max(_FEWEST, split.num_classes), _MOST)
    chosen = balanced_rows(split.labels, number, seed=cfg.SEED, rows=rows)
    pixels, _ = read_pixels(split, np.sort(chosen), view or plain_view(cfg), seed=cfg.SEED)
    return pixels, f'images of {split.source}'


def balanced_rows(labels: np.ndarray, number: int, *, seed: int, rows: np.ndarray | None = None) -> np.ndarray:
    """Return at most `number` rows, with as equal numbers per class as possible, drawn at random.

    Args:
        labels: (n,) int64 classes.
        rows: those to draw from; None: all.
    """
    order = np.random.default_rng(seed).permutation(np.arange(len(labels)) if rows is None else rows)
    # The first of each class, then the second, ...; of the last round, a random part of the classes.
    return order[np.argsort(ranks_in_classes(labels[order]), kind='stable')][:number]


def read_pixels(
    split: DatasetSplit, rows: np.ndarray, view: Transform, *, seed: int
) -> tuple[torch.Tensor, np.ndarray]:
    """Return the images of those rows that can be decoded, uint8 RGB (n, size, size, 3), and these rows (n,).

    Raises:
        UserError: none can be decoded.
    """
    batch = BatchReader(split.images, split.labels, view, seed)[BatchRequest(0, 0, rows)]
    if isinstance(batch, UserError):
        raise batch
    if batch.pixels is None or not batch.readable.any():
        raise UserError(f'{split.source}: none of {count_of(len(rows), "image")} can be decoded')
    return batch.pixels[torch.from_numpy(batch.readable)], rows[batch.readable]
