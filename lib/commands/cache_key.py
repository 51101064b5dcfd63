"""Keys of cached results: fingerprints of the model, the images and the input options that they depend on."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.builders.split import DatasetSplit
from lib.commands.loaded_model import LoadedModel
from lib.dataset.image_format import can_read_heic
from lib.dataset.images import FileImages

_NUM_FILES_CHECKED = 1000  # sizes and times of these reveal photos that were replaced under their names


def weights_fingerprint(state: dict[str, torch.Tensor], prefix: str = '') -> str:
    """Return a fingerprint of the tensors whose names begin with `prefix`."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if name.startswith(prefix):
            digest.update(name.encode())
            content: np.ndarray = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(content.data)
    return digest.hexdigest()


def split_key(split: DatasetSplit) -> dict[str, Any]:
    """Return the fingerprints of a split's names and labels, and of its files."""
    return {'split': split.digest(), 'files': _files_fingerprint(split)}


def input_key(trained: LoadedModel) -> dict[str, Any]:
    """Return the options that images are preprocessed by, and the device that computes."""
    inputs = trained.cfg.INPUT
    return {
        'size': inputs.TEST_SIZE or inputs.SIZE,
        'crop_ratio': inputs.CROP_RATIO,
        'mean': inputs.MEAN,
        'std': inputs.STD,
        'color_space': trained.cfg.DATASET.COLOR_SPACE,
        'heic': can_read_heic(),
        'device': trained.device.describe(training=False),
    }


def _files_fingerprint(split: DatasetSplit) -> str:
    if not isinstance(split.images, FileImages):
        return ''
    digest = hashlib.sha256(os.fsencode(Path(split.images.root).resolve()))
    for row in np.linspace(0, len(split) - 1, min(len(split), _NUM_FILES_CHECKED)).astype(int):
        try:
            stat = Path(split.images.path(row)).stat()
        except OSError:
            continue
        digest.update(f'{row} {stat.st_size} {stat.st_mtime_ns} '.encode())
    return digest.hexdigest()
