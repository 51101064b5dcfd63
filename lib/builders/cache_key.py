"""Keys of cached results: fingerprints of the model, the images and the input options that they depend on."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.builders.split import DatasetSplit
from lib.config.defaults import Config
from lib.dataset.image_format import can_read_heic
from lib.dataset.images import ArrayImages, FileImages, Images, SomeImages
from lib.dataset.paths import spelled_on_disk
from lib.runtime.device import Device
from lib.shards.images import ShardImages
from lib.trainer.checkpointing.state import Checkpoint

_ROWS_AT_ONCE, _NUM_THREADS = 4096, 16  # more threads than cores: on network disks, each call waits


def weights_fingerprint(state: dict[str, torch.Tensor], prefix: str | tuple[str, ...] = '') -> str:
    """Return a fingerprint of the tensors whose names begin with `prefix`, or one of several."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if name.startswith(prefix):
            digest.update(name.encode())
            content: np.ndarray = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(content.data)
    return digest.hexdigest()


def checkpoint_fingerprint(checkpoint: Checkpoint, prefix: str | tuple[str, ...] = '') -> str:
    """Return that of the weights of a checkpoint, with those of its base, see `weights_fingerprint`."""
    fingerprint = weights_fingerprint(checkpoint.state_dict, prefix)
    if checkpoint.base is None:
        return fingerprint
    return hashlib.sha256(f'{fingerprint} {checkpoint.base.digest}'.encode()).hexdigest()


def model_version(cfg: Config, fingerprint: str, class_names: Sequence[str]) -> str:
    """Return a short fingerprint of a model: of its weights, preprocessing and class names.

    It is the same on every device, and for all copies of a checkpoint file.

    Args:
        fingerprint: fingerprint of all weights.
    """
    preprocessing, pool = _preprocessing(cfg)
    return _version(f'{fingerprint} {preprocessing} {list(class_names)}{pool}')


def feature_version(cfg: Config, fingerprint: str) -> str:
    """Return a short fingerprint of a model's features, which are comparable if it is the same.

    Classes may be added to the model and removed from it.

    Args:
        fingerprint: fingerprint of the weights that compute the features.
    """
    return _version('{} {}{}'.format(fingerprint, *_preprocessing(cfg)))


def _preprocessing(cfg: Config) -> tuple[str, str]:
    """Return all that is done to the pixels, and the pooling, as text."""
    inputs = cfg.INPUT
    size = inputs.TEST_SIZE or inputs.SIZE
    steps = [size, inputs.CROP_RATIO, inputs.INTERPOLATION, *inputs.MEAN, *inputs.STD, cfg.DATASET.COLOR_SPACE]
    return str(steps), f' {cfg.MODEL.POOL}' if cfg.MODEL.POOL else ''


def _version(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]


def split_key(split: DatasetSplit, *, with_labels: bool = True) -> dict[str, Any]:
    """Return the fingerprints of a split's names and labels, and of all its files.

    'files' has sizes and times of modification, which a copy on another machine may share, 'inodes' the rest. Features
    do not depend on the labels, so theirs need not be computed again for corrected ones.
    """
    some = split.images if isinstance(split.images, SomeImages) else None
    images = split.images if some is None else some.images
    files, inodes = _file_fingerprints(images) if isinstance(images, FileImages) else (_pixels_fingerprint(images), '')
    if some is not None:
        files = hashlib.sha256(files.encode() + np.ascontiguousarray(some.rows, np.int64).tobytes()).hexdigest()
    return {'split': split.digest() if with_labels else split.names_digest(), 'files': files, 'inodes': inodes}


def input_key(cfg: Config, device: Device, precision: str = '') -> dict[str, Any]:
    """Return the options that validation and test images are preprocessed by, and what computes their features.

    The float32 engines are equal up to rounding, so they are no part of it, and a result that one has begun may be
    completed by another.

    Args:
        precision: precision of the features; default: RUN.ENGINE_PRECISION.
    """
    inputs, precision = cfg.INPUT, precision or cfg.RUN.ENGINE_PRECISION
    return {
        'size': inputs.TEST_SIZE or inputs.SIZE,
        'crop_ratio': inputs.CROP_RATIO,
        **pixel_key(cfg, device),
        **({} if precision == 'float32' else {'engine_precision': precision}),
    }


def pixel_key(cfg: Config, device: Device) -> dict[str, Any]:
    """Return the options that determine the values of pixels, the pooling, and the device that computes."""
    # Keys of older versions, which knew only the bilinear filter, remain valid.
    interpolation = cfg.INPUT.INTERPOLATION
    return {
        **({} if interpolation == 'bilinear' else {'interpolation': interpolation}),
        **({'pool': cfg.MODEL.POOL} if cfg.MODEL.POOL else {}),
        'mean': cfg.INPUT.MEAN,
        'std': cfg.INPUT.STD,
        'color_space': cfg.DATASET.COLOR_SPACE,
        'heic': can_read_heic(),
        'device': device.kind(),
        **({} if cfg.RUN.DECODE_DEVICE == 'cpu' else {'decode_device': cfg.RUN.DECODE_DEVICE}),
    }


def _file_fingerprints(images: FileImages) -> tuple[str, str]:
    """Return fingerprints of size and mtime, and of ctime and inode, of all files; one stat per file.

    A photo replaced under its name, also by one of the same size with its time set back, has another ctime.
    """
    digests = hashlib.sha256(os.fsencode(Path(images.root).resolve())), hashlib.sha256()
    starts = range(0, len(images), _ROWS_AT_ONCE)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for status in pool.map(lambda start: _status_of_files(images, start), starts):
            for digest, columns in zip(digests, (status[:, :2], status[:, 2:]), strict=True):
                digest.update(columns.tobytes())
    return digests[0].hexdigest(), digests[1].hexdigest()


def _status_of_files(images: FileImages, start: int) -> np.ndarray:
    """Return (rows, 4) int64: size, mtime, ctime (nanoseconds) and inode; zeros for a file that cannot be found."""
    paths = images.paths[start : start + _ROWS_AT_ONCE]
    numbers = chain.from_iterable(_status_of(os.path.join(images.root, path)) for path in paths)
    return np.fromiter(numbers, np.int64, 4 * len(paths)).reshape(-1, 4)


def _status_of(path: str) -> tuple[int, int, int, int]:
    try:
        status = os.stat(path)
    except ValueError:  # a name that no file can have
        return 0, 0, 0, 0
    except OSError:
        spelled = spelled_on_disk(path)
        return _status_of(spelled) if spelled not in (None, path) else (0, 0, 0, 0)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & 0x7FFF_FFFF_FFFF_FFFF


def _pixels_fingerprint(images: Images) -> str:
    """Return a fingerprint of images in shards, by their checksums, or in memory."""
    digest = hashlib.sha256()
    if isinstance(images, ShardImages):
        for column in (images.index.checksums, images.index.lengths):
            digest.update(np.ascontiguousarray(column).data)
    elif isinstance(images, ArrayImages):
        digest.update(np.ascontiguousarray(images.images).data)
    return digest.hexdigest()
