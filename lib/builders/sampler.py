"""SAMPLER in the config -> the rows of every epoch."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch

from lib.builders.loss import deferred_start_epoch
from lib.config.defaults import Config
from lib.config.keys.data import PAIRED
from lib.dataset.index import ClassIndex
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
from lib.errors import UserError

SAMPLERS: dict[str, ClassWeights] = {
    'instance_balance': instance_balance,
    'class_balance': class_balance,
    'reverse': reverse,
    'square_root': square_root,
    'progressive': progressive,
    'effective_number': effective_number,
    'repeat_factor': repeat_factor,
}


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


def build_class_factors(cfg: Config, index: ClassIndex, device: torch.device) -> Callable[[int], torch.Tensor] | None:
    """Return epoch -> (num_classes,) weights of images that give each class its share of the sampler; None: all 1.

    They are for an optimizer that uses every image. Their mean over the images is 1.
    """
    options, max_epoch = cfg.SAMPLER, cfg.TRAIN.MAX_EPOCH
    if options.TYPE == 'instance_balance' and options.SWITCH_TYPE in ('', 'instance_balance'):
        return None
    switch_epoch = deferred_start_epoch(options.SWITCH_EPOCH, max_epoch) if options.SWITCH_TYPE else max_epoch
    counts = index.class_counts

    @cache
    def factors(epoch: int) -> torch.Tensor:
        weights = _class_weights(cfg, options.SWITCH_TYPE if epoch >= switch_epoch else options.TYPE)
        shares = weights(counts, min(1.0, epoch / max(1, max_epoch - 1)))
        per_image = np.divide(shares, counts, out=np.zeros(len(counts)), where=counts > 0)
        return torch.from_numpy(per_image * (counts.sum() / shares.sum())).float().to(device)

    return factors


def _class_weights(cfg: Config, name: str) -> ClassWeights:
    if name == 'effective_number':
        return partial(effective_number, beta=cfg.SAMPLER.BETA)
    if name == 'repeat_factor':
        return partial(repeat_factor, threshold=cfg.SAMPLER.REPEAT_THRESHOLD)
    return SAMPLERS[name]


def _sampler(cfg: Config, name: str, index: ClassIndex, *, stream: int = 0) -> Sampler:
    weights = _class_weights(cfg, name)
    systematic = name == 'repeat_factor'
    return Sampler(weights, index, cfg.SEED, cfg.TRAIN.MAX_EPOCH, systematic=systematic, stream=stream)
