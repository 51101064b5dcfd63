"""INPUT and batch sizes in the config -> transforms and loaders."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import torch

from lib.builders.sampler import build_sampler, slots_per_image
from lib.builders.split import DatasetSplit
from lib.config.defaults import Config
from lib.config.keys.data import InputKeys
from lib.dataset.augment import Augment
from lib.dataset.device_decode import decoder_fault
from lib.dataset.features import FeatureReader, Features
from lib.dataset.images import ArrayImages, Images
from lib.dataset.index import ClassIndex
from lib.dataset.loader import BatchTooSmall, EvalLoader, FullBatchLoader, TrainLoader
from lib.dataset.normalize import Normalize
from lib.dataset.paths import PathColumn
from lib.dataset.ram_cache import CachedImages
from lib.dataset.reader import BatchReader
from lib.dataset.transforms import PadCrop, RandomResizedCrop, ResizeCenterCrop, Transform
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.inference.run import logit_batch_size
from lib.runtime.device import Device
from lib.runtime.shared_memory import SharedMemoryFull
from lib.runtime.text import count_of
from lib.runtime.workers import num_cores

_FEW_IMAGES = 20_000  # a few threads read these before worker processes, which read faster, have started
_MAX_WORKERS_PER_CORE, _ALWAYS_ALLOWED = 16, 64  # worker processes
_CPU_BATCH_SIZE = 64  # larger batches exceed the caches of a CPU and are slower

TRAIN_TRANSFORMS: dict[str, Callable[[InputKeys], Transform]] = {
    'random_resized_crop': lambda inputs: RandomResizedCrop(
        inputs.SIZE, inputs.SCALE, inputs.RATIO, inputs.FLIP_PROBABILITY, interpolation=inputs.INTERPOLATION
    ),
    'pad_crop': lambda inputs: PadCrop(
        inputs.SIZE, inputs.PADDING, inputs.FLIP_PROBABILITY, interpolation=inputs.INTERPOLATION
    ),
    'center_crop': lambda inputs: ResizeCenterCrop(inputs.SIZE, inputs.CROP_RATIO, interpolation=inputs.INTERPOLATION),
}


def train_sizes(cfg: Config) -> dict[int, int]:
    """Return {epoch: size of training images from then on, pixels}; the first epoch is 0, and epochs rise."""
    schedule = cfg.INPUT.SIZE_SCHEDULE
    return {0: cfg.INPUT.SIZE, **dict(zip(schedule[::2], schedule[1::2], strict=True))}


def build_train_loader(
    cfg: Config,
    split: DatasetSplit,
    index: ClassIndex,
    device: Device,
    group: ProcessGroup = SINGLE_PROCESS,
    class_names: Sequence[str] = (),
    features: Sequence[Features] = (),
) -> TrainLoader | FullBatchLoader:
    """Return the loader of the training rows in `index`; messages name the classes, if they have names.

    With `features`, one per view, its batches are of these in place of images. OPTIMIZER.TYPE lbfgs has one batch.

    With two slots per image its batches are twice as large, and an epoch has the same number of steps.

    Raises:
        UserError: a batch is too small for its classes or for the ranks; there is too little shared memory.
    """
    options: dict[str, Any] = {
        'on_bad': {'skip': 'replace', 'raise': 'raise'}[cfg.DATASET.ON_BAD_IMAGE],
        'index': index,
        'class_names': PathColumn(pa.array(class_names, pa.large_string())) if class_names else (),
        'hint': '--DATASET_ON_BAD_IMAGE skip trains without such images',
    }
    reader: BatchReader | FeatureReader
    if features:
        is_shuffled = cfg.OPTIMIZER.TYPE != 'lbfgs'
        reader = FeatureReader(features, device.main, split.images.name, cfg.SEED, is_shuffled=is_shuffled, **options)
    else:
        reader = _train_reader(cfg, split, **options)
    per_image = slots_per_image(cfg)
    try:
        if cfg.OPTIMIZER.TYPE == 'lbfgs':
            assert isinstance(reader, FeatureReader)
            return FullBatchLoader(reader, index.rows, cfg.TRAIN.BATCH_SIZE, weights=split.weights, group=group)
        return TrainLoader(
            reader,
            build_sampler(cfg, index),
            per_image * len(index),
            per_image * cfg.TRAIN.BATCH_SIZE,
            sizes=train_sizes(cfg),
            weights=split.weights,
            group=group,
            **({} if isinstance(reader, FeatureReader) else _pipeline_options(cfg, device, reader)),
        )
    except BatchTooSmall as error:
        raise _batch_too_small(error) from None
    except SharedMemoryFull as error:
        raise _batches_too_large(error) from None


def _train_reader(cfg: Config, split: DatasetSplit, **options: Any) -> BatchReader:
    transform, augment = TRAIN_TRANSFORMS[cfg.INPUT.TRAIN_TRANSFORM](cfg.INPUT), build_augment(cfg)
    return BatchReader(_images(cfg, split), split.labels, transform, cfg.SEED, augment=augment, **options)


def _batch_too_small(error: BatchTooSmall) -> UserError:
    if error.num_slots < 2 * error.world_size:
        return UserError(
            f'{error.num_slots} training images are too few for {error.world_size} ranks, of which each takes a part '
            f'of every batch: start at most {max(1, error.num_slots // 2)}'
        )
    return UserError(
        f'TRAIN.BATCH_SIZE: steps of {error.batch_size} images leave some of the {error.world_size} ranks with none; '
        f'--TRAIN_BATCH_SIZE {2 * error.world_size} gives each two, the fewest for BatchNorm'
    )


def _batches_too_large(error: SharedMemoryFull) -> UserError:
    return UserError(
        f'{error}; a smaller --RUN_NUM_WORKERS (0: none is needed) or --TRAIN_BATCH_SIZE needs less, and in a '
        'container docker run --shm-size=8g gives more'
    )


def build_eval_loader(
    cfg: Config,
    split: DatasetSplit,
    device: Device,
    group: ProcessGroup = SINGLE_PROCESS,
    views: Sequence[Transform] = (),
    *,
    train_view: int | None = None,
    features: Features | None = None,
    whole_batches: bool = False,
    normalized: bool = True,
) -> EvalLoader:
    """Return the loader of every image of a split, in order.

    Args:
        views: the crops of each image; default: the plain view.
        train_view: instead, the crop and augmentation of training with the random numbers of this epoch, where the
            slot of an image is its row.
        features: features of the split, which batches contain in place of images.
        whole_batches: as in EvalLoader.
        normalized: False: the images of a batch are uint8 RGB (batch, size, size, 3), for networks that normalize.

    Raises:
        UserError: there is too little shared memory.
    """
    if features is not None:
        size = cfg.TEST.BATCH_SIZE or logit_batch_size(split.num_classes)
        stored = FeatureReader([features], device.main, split.images.name, cfg.SEED)
        return EvalLoader(stored, len(split), size, whole_batches=whole_batches, group=group)
    if train_view is None:
        first, *others = views or [plain_view(cfg)]
        reader = BatchReader(_images(cfg, split), split.labels, first, cfg.SEED, extra_transforms=tuple(others))
    else:
        reader = _train_reader(cfg, split)
    options = _pipeline_options(cfg, device, reader)
    if not normalized:
        options['normalize'] = torch.Tensor.contiguous
    # An augmentation seeds the generator that all threads share.
    if cfg.RUN.NUM_WORKERS < 0 and len(split) < _FEW_IMAGES and reader.augment is None:
        options |= {'num_workers': 0, 'num_threads': num_workers(-1)}
    try:
        return EvalLoader(
            reader,
            len(split),
            eval_batch_size(cfg, device),
            whole_batches=whole_batches,
            epoch=train_view or 0,
            group=group,
            **options,
        )
    except SharedMemoryFull as error:
        raise _batches_too_large(error) from None


def eval_batch_size(cfg: Config, device: Device) -> int:
    """Return the number of images per step of validation or test."""
    if cfg.TEST.BATCH_SIZE:
        return cfg.TEST.BATCH_SIZE
    return min(cfg.TRAIN.BATCH_SIZE, _CPU_BATCH_SIZE) if device.main.type == 'cpu' else cfg.TRAIN.BATCH_SIZE


def plain_view(cfg: Config) -> ResizeCenterCrop:
    """Return the transform of validation images."""
    inputs = cfg.INPUT
    return ResizeCenterCrop(inputs.TEST_SIZE or inputs.SIZE, inputs.CROP_RATIO, interpolation=inputs.INTERPOLATION)


def build_augment(cfg: Config) -> Augment | None:
    """Return the augmentation of training crops beyond crop and flip; None: nothing."""
    inputs = cfg.INPUT
    if not (inputs.AUGMENT or any(inputs.COLOR_JITTER) or inputs.ERASE_PROBABILITY):
        return None
    return Augment(
        jitter=inputs.COLOR_JITTER,
        policy=inputs.AUGMENT,
        num_ops=inputs.RAND_AUGMENT_OPS,
        magnitude=inputs.RAND_AUGMENT_MAGNITUDE,
        erase_probability=inputs.ERASE_PROBABILITY,
        fill=[round(255 * mean) for mean in inputs.MEAN],
    )


def stored_short_side(cfg: Config) -> int:
    """Return the short side, in pixels, to which images can be reduced without loss at the largest INPUT.SIZE.

    Random crops zoom into the image, so it is a quarter larger than in validation.
    """
    largest = max(cfg.INPUT.TEST_SIZE or cfg.INPUT.SIZE, *train_sizes(cfg).values())
    needed = largest / cfg.INPUT.CROP_RATIO
    return math.ceil(round(needed * 1.25, 6))  # rounded first: 112 / 0.875 * 1.25 is 160 in spite of its last bit


def _images(cfg: Config, split: DatasetSplit) -> Images:
    # Arrays are in memory already.
    if cfg.DATASET.CACHE != 'ram' or isinstance(split.images, ArrayImages):
        return split.images
    try:
        return CachedImages(split.images, stored_short_side(cfg), label=split.source, num_threads=num_cores())
    except SharedMemoryFull as error:
        raise UserError(
            f"DATASET.CACHE ram: {error}; train without it (--DATASET_CACHE ''), or from packed shards "
            '(tools/pack.py). In a container, docker run --shm-size=8g gives more'
        ) from None


def _pipeline_options(cfg: Config, device: Device, reader: BatchReader) -> dict[str, Any]:
    on_device = cfg.RUN.DECODE_DEVICE != 'cpu'
    if on_device:
        _check_device_decoding(cfg, device.main, reader)
    return {
        'device': device.main,
        'normalize': build_normalize(cfg, device),
        'num_workers': num_workers(cfg.RUN.NUM_WORKERS),
        'decodes_on_device': on_device,
    }


def _check_device_decoding(cfg: Config, device: torch.device, reader: BatchReader) -> None:
    """Raise UserError if the images of a reader cannot be decoded on the device."""
    chosen, reason = f'RUN.DECODE_DEVICE is {cfg.RUN.DECODE_DEVICE}', ''
    if device.type != cfg.RUN.DECODE_DEVICE:
        reason = f'the images of this run are processed on {device}'
    elif cfg.DATASET.CACHE == 'ram':
        reason = 'DATASET.CACHE ram stores decoded images'
    elif reader.augment is not None:
        reason = 'INPUT.AUGMENT, COLOR_JITTER and ERASE_PROBABILITY need the pixels on the CPU'
    elif fault := decoder_fault(device):
        reason = f'torchvision cannot decode JPEG images on {device} ({fault})'
    if reason:
        raise UserError(f'{chosen}, but {reason}: --RUN_DECODE_DEVICE cpu')


def build_normalize(cfg: Config, device: Device) -> Normalize:
    """Return the normalization of all images."""
    return Normalize(
        cfg.INPUT.MEAN, cfg.INPUT.STD, bgr=cfg.DATASET.COLOR_SPACE == 'BGR', memory_format=device.memory_format
    )


def num_workers(requested: int) -> int:
    """Return the number of processes that read images: RUN.NUM_WORKERS, or one per core, at most 8.

    Raises:
        UserError: many more than cores, which would only take memory and process ids.
    """
    limit = max(_ALWAYS_ALLOWED, _MAX_WORKERS_PER_CORE * num_cores())
    if requested > limit:
        raise UserError(
            f'RUN.NUM_WORKERS is {requested}, but this machine has {count_of(num_cores(), "CPU core")}: at most '
            f'{limit} processes are started; --RUN_NUM_WORKERS -1 starts one per core'
        )
    return requested if requested >= 0 else min(8, num_cores())
