"""INPUT, SAMPLER and batch sizes in the config -> samplers, transforms and loaders."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from lib.builders.loss import deferred_start_epoch
from lib.builders.split import DatasetSplit
from lib.config.defaults import Config
from lib.config.keys.data import PAIRED, InputKeys
from lib.dataset.augment import Augment
from lib.dataset.images import ArrayImages, Images
from lib.dataset.index import ClassIndex
from lib.dataset.loader import BatchTooSmall, EvalLoader, TrainLoader
from lib.dataset.normalize import Normalize
from lib.dataset.paths import PathColumn
from lib.dataset.ram_cache import CachedImages
from lib.dataset.reader import BatchReader
from lib.dataset.sampler import (
    ClassBatches,
    ClassWeights,
    EpochSampler,
    PairedSampler,
    RepeatedSampler,
    Sampler,
    SwitchingSampler,
    TooFewClasses,
    class_balance,
    effective_number,
    instance_balance,
    progressive,
    repeat_factor,
    reverse,
    square_root,
)
from lib.dataset.transforms import PadCrop, RandomResizedCrop, ResizeCenterCrop, Transform
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.runtime.device import Device
from lib.runtime.shared_memory import SharedMemoryFull
from lib.runtime.workers import num_cores

_FEW_IMAGES = 20_000  # a few threads read these before worker processes, which read faster, have started
_CPU_BATCH_SIZE = 64  # larger batches exceed the caches of a CPU and are slower

SAMPLERS: dict[str, ClassWeights] = {
    'instance_balance': instance_balance,
    'class_balance': class_balance,
    'reverse': reverse,
    'square_root': square_root,
    'progressive': progressive,
    'effective_number': effective_number,
    'repeat_factor': repeat_factor,
}

TRAIN_TRANSFORMS: dict[str, Callable[[InputKeys], Transform]] = {
    'random_resized_crop': lambda inputs: RandomResizedCrop(
        inputs.SIZE, inputs.SCALE, inputs.RATIO, inputs.FLIP_PROBABILITY
    ),
    'pad_crop': lambda inputs: PadCrop(inputs.SIZE, inputs.PADDING, inputs.FLIP_PROBABILITY),
    'center_crop': lambda inputs: ResizeCenterCrop(inputs.SIZE, inputs.CROP_RATIO),
}


def train_sizes(cfg: Config) -> dict[int, int]:
    """Return {epoch: size of training images from then on, pixels}; the first epoch is 0, and epochs rise."""
    schedule = cfg.INPUT.SIZE_SCHEDULE
    return {0: cfg.INPUT.SIZE, **dict(zip(schedule[::2], schedule[1::2], strict=True))}


def build_sampler(cfg: Config, index: ClassIndex) -> EpochSampler:
    """Return the sampler of a run: `slots_per_image` adjacent slots for each image of the index.

    Raises:
        UserError: SAMPLER.IMAGES_PER_CLASS asks for more classes per batch than there are.
    """
    sampler = _main_sampler(cfg, index)
    if cfg.MIX.TYPE in PAIRED:
        return PairedSampler(sampler, _sampler(cfg, cfg.SAMPLER.PAIR_TYPE, index, stream=1))
    return RepeatedSampler(sampler, 2) if slots_per_image(cfg) == 2 else sampler


def slots_per_image(cfg: Config) -> int:
    """Return the slots per image of TRAIN.BATCH_SIZE: 2 for pairs of images or of views."""
    return 2 if cfg.MIX.TYPE in PAIRED or cfg.LOSS.AUXILIARY == 'balanced_contrastive' else 1


def _main_sampler(cfg: Config, index: ClassIndex) -> EpochSampler:
    options = cfg.SAMPLER

    def sampler(name: str) -> EpochSampler:
        if name == 'class_balance' and options.IMAGES_PER_CLASS:
            return _class_batches(cfg, index)
        return _sampler(cfg, name, index)

    first = sampler(options.TYPE)
    if not options.SWITCH_TYPE:
        return first
    switch_epoch = deferred_start_epoch(options.SWITCH_EPOCH, cfg.TRAIN.MAX_EPOCH)
    return SwitchingSampler(first, sampler(options.SWITCH_TYPE), switch_epoch)


def _class_batches(cfg: Config, index: ClassIndex) -> ClassBatches:
    try:
        return ClassBatches(index, cfg.SEED, cfg.TRAIN.BATCH_SIZE, cfg.SAMPLER.IMAGES_PER_CLASS)
    except TooFewClasses as error:
        raise UserError(
            f'SAMPLER.IMAGES_PER_CLASS is {cfg.SAMPLER.IMAGES_PER_CLASS}, so a batch of {error.batch_size} images '
            f'needs {error.num_needed} classes, but only {error.num_present} have images; make it larger, or '
            'TRAIN.BATCH_SIZE smaller'
        ) from None


def _sampler(cfg: Config, name: str, index: ClassIndex, *, stream: int = 0) -> Sampler:
    weights = SAMPLERS[name]
    if name == 'effective_number':
        weights = partial(effective_number, beta=cfg.SAMPLER.BETA)
    elif name == 'repeat_factor':
        weights = partial(repeat_factor, threshold=cfg.SAMPLER.REPEAT_THRESHOLD)
    systematic = name == 'repeat_factor'
    return Sampler(weights, index, cfg.SEED, cfg.TRAIN.MAX_EPOCH, systematic=systematic, stream=stream)


def build_train_loader(
    cfg: Config,
    split: DatasetSplit,
    index: ClassIndex,
    device: Device,
    group: ProcessGroup = SINGLE_PROCESS,
    class_names: Sequence[str] = (),
) -> TrainLoader:
    """Return the loader of the training rows in `index`; messages name the classes, if they have names.

    With two slots per image its batches are twice as large, and an epoch has the same number of steps.

    Raises:
        UserError: a batch is too small for its classes or for the ranks; there is too little shared memory.
    """
    reader = BatchReader(
        _images(cfg, split),
        split.labels,
        TRAIN_TRANSFORMS[cfg.INPUT.TRAIN_TRANSFORM](cfg.INPUT),
        cfg.SEED,
        on_bad={'skip': 'replace', 'raise': 'raise'}[cfg.DATASET.ON_BAD_IMAGE],
        index=index,
        augment=build_augment(cfg),
        class_names=PathColumn(pa.array(class_names, pa.large_string())) if class_names else (),
        hint='--DATASET_ON_BAD_IMAGE skip trains without such images',
    )
    per_image = slots_per_image(cfg)
    try:
        return TrainLoader(
            reader,
            build_sampler(cfg, index),
            per_image * len(index),
            per_image * cfg.TRAIN.BATCH_SIZE,
            sizes=train_sizes(cfg),
            group=group,
            **_pipeline_options(cfg, device),
        )
    except BatchTooSmall as error:
        raise _batch_too_small(error) from None
    except SharedMemoryFull as error:
        raise _batches_too_large(error) from None


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
    whole_batches: bool = False,
) -> EvalLoader:
    """Return the loader of a validation or test split.

    Args:
        views: the crops of each image; default: the plain view.
        whole_batches: as in EvalLoader.

    Raises:
        UserError: there is too little shared memory.
    """
    options = _pipeline_options(cfg, device)
    if cfg.RUN.NUM_WORKERS < 0 and len(split) < _FEW_IMAGES:
        options |= {'num_workers': 0, 'num_threads': num_workers(-1)}
    first, *others = views or [plain_view(cfg)]
    reader = BatchReader(_images(cfg, split), split.labels, first, cfg.SEED, extra_transforms=tuple(others))
    try:
        size = eval_batch_size(cfg, device)
        return EvalLoader(reader, len(split), size, whole_batches=whole_batches, group=group, **options)
    except SharedMemoryFull as error:
        raise _batches_too_large(error) from None


def eval_batch_size(cfg: Config, device: Device) -> int:
    """Return the number of images per step of validation or test."""
    if cfg.TEST.BATCH_SIZE:
        return cfg.TEST.BATCH_SIZE
    return min(cfg.TRAIN.BATCH_SIZE, _CPU_BATCH_SIZE) if device.main.type == 'cpu' else cfg.TRAIN.BATCH_SIZE


def plain_view(cfg: Config) -> ResizeCenterCrop:
    """Return the transform of validation images."""
    return ResizeCenterCrop(cfg.INPUT.TEST_SIZE or cfg.INPUT.SIZE, cfg.INPUT.CROP_RATIO)


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


def _pipeline_options(cfg: Config, device: Device) -> dict[str, Any]:
    normalize = Normalize(cfg.INPUT.MEAN, cfg.INPUT.STD, bgr=cfg.DATASET.COLOR_SPACE == 'BGR')
    return {'device': device.main, 'normalize': normalize, 'num_workers': num_workers(cfg.RUN.NUM_WORKERS)}


def num_workers(requested: int) -> int:
    """Return the number of processes that read images: RUN.NUM_WORKERS, or one per core, at most 8."""
    if requested >= 0:
        return requested
    return min(8, num_cores())
