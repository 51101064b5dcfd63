"""Keys of cached results: fingerprints of the model, the images and the input options that they depend on."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.builders.split import DatasetSplit
from lib.config.defaults import Config
from lib.dataset.image_format import can_read_heic
from lib.dataset.images import FileImages
from lib.runtime.device import Device
from lib.trainer.checkpointing.state import Checkpoint

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


def checkpoint_fingerprint(checkpoint: Checkpoint, prefix: str = '') -> str:
    """Return a fingerprint of the weights of a checkpoint whose names begin with `prefix`, with those of its base."""
    fingerprint = weights_fingerprint(checkpoint.state_dict, prefix)
    if checkpoint.base is None:
        return fingerprint
    return hashlib.sha256(f'{fingerprint} {checkpoint.base.digest}'.encode()).hexdigest()


def split_key(split: DatasetSplit) -> dict[str, Any]:
    """Return the fingerprints of a split's names and labels, and of its files."""
    return {'split': split.digest(), 'files': _files_fingerprint(split)}


def input_key(cfg: Config, device: Device) -> dict[str, Any]:
    """Return the options that validation and test images are preprocessed by, and the device that computes."""
    inputs = cfg.INPUT
    return {'size': inputs.TEST_SIZE or inputs.SIZE, 'crop_ratio': inputs.CROP_RATIO, **pixel_key(cfg, device)}


def pixel_key(cfg: Config, device: Device) -> dict[str, Any]:
    """Return the options that determine the values of pixels, and the device that computes."""
    # Keys of older versions, which knew only the bilinear filter, remain valid.
    interpolation = cfg.INPUT.INTERPOLATION
    return {
        **({} if interpolation == 'bilinear' else {'interpolation': interpolation}),
        'mean': cfg.INPUT.MEAN,
        'std': cfg.INPUT.STD,
        'color_space': cfg.DATASET.COLOR_SPACE,
        'heic': can_read_heic(),
        'device': device.describe(training=False),
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
