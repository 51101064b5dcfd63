"""INPUT, SAMPLER and batch sizes in the config -> loaders.

INPUT.SIZE and INPUT.SIZE_SCHEDULE in the config -> how large training images are, and when.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

from yacs.config import CfgNode

from lib.builders.loss import deferred_epoch
from lib.builders.split import Split
from lib.config.keys.data import PAIRED
from lib.dataset.augment import Augment
from lib.dataset.images import ArrayImages, Images
from lib.dataset.index import ClassIndex
from lib.dataset.loader import EpochSampler, EvalLoader, TrainLoader
from lib.dataset.normalize import Normalize
from lib.dataset.ram_cache import CachedImages
from lib.dataset.reader import BatchReader
from lib.dataset.sampler import (
    ClassBatches,
    ClassWeights,
    PairedSampler,
    RepeatedSampler,
    Sampler,
    SwitchingSampler,
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
from lib.runtime.device import Device
from lib.runtime.workers import num_cores


def train_sizes(cfg: CfgNode) -> dict[int, int]:
    """Return {epoch: side of training images from then on, pixels}; the first epoch is 0, and they rise."""
    schedule = cfg.INPUT.SIZE_SCHEDULE
    return {0: cfg.INPUT.SIZE, **dict(zip(schedule[::2], schedule[1::2], strict=True))}


_FEW_IMAGES = 20_000  # that are read, with a few threads, before processes that would read faster have started
_CPU_BATCH_SIZE = 64  # larger ones leave the caches of a CPU and are slower

SAMPLERS: dict[str, ClassWeights] = {
    'instance_balance': instance_balance,
    'class_balance': class_balance,
    'reverse': reverse,
    'square_root': square_root,
    'progressive': progressive,
    'effective_number': effective_number,
    'repeat_factor': repeat_factor,
}

TRAIN_TRANSFORMS: dict[str, Callable] = {
    'random_resized_crop': lambda inputs: RandomResizedCrop(
        inputs.SIZE, inputs.SCALE, inputs.RATIO, inputs.FLIP_PROBABILITY
    ),
    'pad_crop': lambda inputs: PadCrop(inputs.SIZE, inputs.PADDING, inputs.FLIP_PROBABILITY),
    'center_crop': lambda inputs: ResizeCenterCrop(inputs.SIZE, inputs.CROP_RATIO),
}


def build_sampler(cfg: CfgNode, index: ClassIndex) -> EpochSampler:
    """Return what gives each epoch its rows: one an image of the index, or `slots_per_image` of them side by side."""
    plan = _main_plan(cfg, index)
    if cfg.MIX.TYPE in PAIRED:
        return PairedSampler(plan, _sampler(cfg, cfg.SAMPLER.PAIR_TYPE, index, stream=1))
    return RepeatedSampler(plan, 2) if slots_per_image(cfg) == 2 else plan


def slots_per_image(cfg: CfgNode) -> int:
    """Return how many images a step reads for each of TRAIN.BATCH_SIZE: pairs of images or of views are two."""
    return 2 if cfg.MIX.TYPE in PAIRED or cfg.LOSS.AUXILIARY == 'balanced_contrastive' else 1


def _main_plan(cfg: CfgNode, index: ClassIndex) -> EpochSampler:
    options = cfg.SAMPLER

    def plan(name: str) -> Sampler | ClassBatches:
        if name == 'class_balance' and options.IMAGES_PER_CLASS:
            return ClassBatches(index, cfg.SEED, cfg.TRAIN.BATCH_SIZE, options.IMAGES_PER_CLASS)
        return _sampler(cfg, name, index)

    first = plan(options.TYPE)
    if not options.SWITCH_TYPE:
        return first
    switch_epoch = deferred_epoch(options.SWITCH_EPOCH, cfg.TRAIN.MAX_EPOCH)
    return SwitchingSampler(first, plan(options.SWITCH_TYPE), switch_epoch)


def _sampler(cfg: CfgNode, name: str, index: ClassIndex, *, stream: int = 0) -> Sampler:
    weights = SAMPLERS[name]
    if name == 'effective_number':
        weights = partial(weights, beta=cfg.SAMPLER.BETA)
    elif name == 'repeat_factor':
        weights = partial(weights, threshold=cfg.SAMPLER.REPEAT_THRESHOLD)
    evenly = name == 'repeat_factor'
    return Sampler(weights, index, cfg.SEED, cfg.TRAIN.MAX_EPOCH, evenly=evenly, stream=stream)


def build_train_loader(
    cfg: CfgNode, split: Split, index: ClassIndex, device: Device, group: ProcessGroup = SINGLE_PROCESS
) -> TrainLoader:
    """Return the loader of the training split; `index` says which of its rows take part.

    Where there are two slots an image, its batches are twice as large, and an epoch has as many as ever.
    """
    on_bad = {'skip': 'replace', 'raise': 'raise'}[cfg.DATASET.ON_BAD_IMAGE]
    transform = TRAIN_TRANSFORMS[cfg.INPUT.TRAIN_TRANSFORM](cfg.INPUT)
    images = _images(cfg, split)
    reader = BatchReader(images, split.labels, transform, cfg.SEED, on_bad, index, build_augment(cfg))
    plan = build_sampler(cfg, index)
    each = slots_per_image(cfg)
    return TrainLoader(
        reader,
        plan,
        each * len(index),
        each * cfg.TRAIN.BATCH_SIZE,
        sizes=train_sizes(cfg),
        group=group,
        **_feed_options(cfg, device),
    )


def build_eval_loader(
    cfg: CfgNode,
    split: Split,
    device: Device,
    group: ProcessGroup = SINGLE_PROCESS,
    views: Sequence[Transform] = (),
) -> EvalLoader:
    """Return the loader of a validation or test split; `views`: how each image is seen, in place of the plain view."""
    batch_size = eval_batch_size(cfg, device)
    options = _feed_options(cfg, device)
    if cfg.RUN.NUM_WORKERS < 0 and len(split) < _FEW_IMAGES:
        options |= {'num_workers': 0, 'num_threads': num_workers(-1)}
    first, *others = views or [plain_view(cfg)]
    reader = BatchReader(_images(cfg, split), split.labels, first, cfg.SEED, others=tuple(others))
    return EvalLoader(reader, len(split), batch_size, group=group, **options)


def eval_batch_size(cfg: CfgNode, device: Device) -> int:
    """Return how many images a step of validation or test takes."""
    if cfg.TEST.BATCH_SIZE:
        return cfg.TEST.BATCH_SIZE
    return min(cfg.TRAIN.BATCH_SIZE, _CPU_BATCH_SIZE) if device.main.type == 'cpu' else cfg.TRAIN.BATCH_SIZE


def plain_view(cfg: CfgNode) -> ResizeCenterCrop:
    """Return how images are seen in validation."""
    return ResizeCenterCrop(cfg.INPUT.TEST_SIZE or cfg.INPUT.SIZE, cfg.INPUT.CROP_RATIO)


def build_augment(cfg: CfgNode) -> Augment | None:
    """Return what happens to training crops beyond crop and flip; None: nothing."""
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


def stored_short_side(cfg: CfgNode) -> int:
    """Return the short side, pixels, to which images may be reduced before the largest INPUT.SIZE misses anything.

    Random crops zoom into the image, so it is kept a quarter larger than validation sees it.
    """
    largest = max(cfg.INPUT.TEST_SIZE or cfg.INPUT.SIZE, *train_sizes(cfg).values())
    needed = largest / cfg.INPUT.CROP_RATIO
    return math.ceil(round(needed * 1.25, 6))  # rounded first: 112 / 0.875 * 1.25 is 160, whatever its last bit says


def _images(cfg: CfgNode, split: Split) -> Images:
    # Arrays are in memory already.
    if cfg.DATASET.CACHE != 'ram' or isinstance(split.images, ArrayImages):
        return split.images
    return CachedImages(split.images, stored_short_side(cfg), label=split.source, num_threads=num_cores())


def _feed_options(cfg: CfgNode, device: Device) -> dict:
    normalize = Normalize(cfg.INPUT.MEAN, cfg.INPUT.STD, bgr=cfg.DATASET.COLOR_SPACE == 'BGR')
    return {'device': device.main, 'normalize': normalize, 'num_workers': num_workers(cfg.RUN.NUM_WORKERS)}


def num_workers(wanted: int) -> int:
    """Return how many processes read images: RUN.NUM_WORKERS, or one a core, at most 8."""
    if wanted >= 0:
        return wanted
    return min(8, num_cores())
