"""What numbers on the disk depend on, as short texts: whether they are still those of this model and these images."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.builders.split import Split
from lib.commands.loaded_model import LoadedModel
from lib.dataset.images import FileImages

_FILES_LOOKED_AT = 1000  # of a split: that photos were replaced under their names shows in sizes and times


def weights_fingerprint(state: dict[str, torch.Tensor], prefix: str = '') -> str:
    """Return a fingerprint of the tensors whose names begin with `prefix`."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if name.startswith(prefix):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def split_key(split: Split) -> dict[str, Any]:
    """Return what says which images a split has, and that they are those of before."""
    return {'split': split.digest(), 'files': _files_digest(split)}


def input_key(trained: LoadedModel) -> dict[str, Any]:
    """Return what says how a model is shown an image, and how it computes."""
    inputs = trained.cfg.INPUT
    return {
        'size': inputs.TEST_SIZE or inputs.SIZE,
        'crop_ratio': inputs.CROP_RATIO,
        'mean': inputs.MEAN,
        'std': inputs.STD,
        'color_space': trained.cfg.DATASET.COLOR_SPACE,
        'device': trained.device.describe(training=False),
    }


def _files_digest(split: Split) -> str:
    if not isinstance(split.images, FileImages):
        return ''
    digest = hashlib.sha256(str(Path(split.images.root).resolve()).encode())
    for row in np.linspace(0, len(split) - 1, min(len(split), _FILES_LOOKED_AT)).astype(int):
        try:
            stat = Path(split.images.name(row)).stat()
        except OSError:
            continue
        digest.update(f'{row} {stat.st_size} {stat.st_mtime_ns} '.encode())
    return digest.hexdigest()
