"""OPTIMIZER and SCHEDULE in the config -> the optimiser, and the learning rate of every step."""

from collections.abc import Callable
from functools import partial

import torch

from lib.config.defaults import Config
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.model import Recognizer
from lib.optim.gradients import clip_gradients, make_scaler
from lib.optim.optimizer import create_optimizer, keep_norms_below, layer_scales
from lib.optim.schedule import cosine, multistep, one_cycle
from lib.runtime.device import Device

SCHEDULES: dict[str, Callable[..., Callable[[int], float]]] = {
    'multistep': lambda cfg, **common: multistep(
        cfg.OPTIMIZER.LR, cfg.SCHEDULE.MILESTONE_EPOCHS, cfg.SCHEDULE.DECAY_FACTORS, **common
    ),
    'cosine': lambda cfg, **common: cosine(
        cfg.OPTIMIZER.LR, cfg.SCHEDULE.FINAL_LR, max_epoch=cfg.TRAIN.MAX_EPOCH, **common
    ),
    'one_cycle': lambda cfg, **common: one_cycle(
        cfg.OPTIMIZER.LR,
        max_epoch=cfg.TRAIN.MAX_EPOCH,
        div_factor=cfg.SCHEDULE.DIV_FACTOR,
        final_div_factor=cfg.SCHEDULE.FINAL_DIV_FACTOR,
        **common,
    ),
}


def build_schedule(cfg: Config, steps_per_epoch: int) -> Callable[[int], float]:
    """Return global step -> learning rate; a run of no epochs has one all the same."""
    if cfg.TRAIN.MAX_EPOCH == 0:
        return lambda step: cfg.OPTIMIZER.LR
    return SCHEDULES[cfg.SCHEDULE.TYPE](cfg, steps_per_epoch=steps_per_epoch, warmup_epochs=cfg.SCHEDULE.WARMUP_EPOCHS)


def build_optimizer(cfg: Config, model: Recognizer) -> torch.optim.Optimizer:
    """Return the optimiser of the parameters that are trained.

    Raises:
        UserError: OPTIMIZER.MAX_NORM would change a classifier that is frozen, or OPTIMIZER.LAYER_DECAY is for a
            backbone that does not tell its blocks.
    """
    options = cfg.OPTIMIZER
    lr_scales = None
    if options.LAYER_DECAY < 1:
        scales = layer_scales(model.backbone, options.LAYER_DECAY, name=cfg.MODEL.BACKBONE)
        lr_scales = {f'backbone.{name}': scale for name, scale in scales.items()}
    optimizer = create_optimizer(
        model,
        kind=options.TYPE,
        lr=options.LR,
        momentum=options.MOMENTUM,
        nesterov=options.NESTEROV,
        weight_decay=options.WEIGHT_DECAY,
        betas=options.BETAS,
        decay_norm_and_bias=options.DECAY_NORM_AND_BIAS,
        lr_scales=lr_scales,
    )
    if options.MAX_NORM:
        if not model.classifier.weight.requires_grad:
            raise UserError(
                f'OPTIMIZER.MAX_NORM is {options.MAX_NORM:g}, but MODEL.FREEZE_CLASSIFIER True keeps the rows as they '
                'are: leave one of them out'
            )
        keep_norms_below(optimizer, model.classifier.weight, options.MAX_NORM)
    return optimizer


def build_clip(cfg: Config, model: Recognizer, group: ProcessGroup) -> Callable[[], torch.Tensor] | None:
    """Return what bounds the gradients before a step; None: nothing does."""
    if not cfg.OPTIMIZER.CLIP_NORM:
        return None
    rows = list(model.classifier.parameters()) if model.is_partial else []
    return partial(clip_gradients, list(model.parameters()), cfg.OPTIMIZER.CLIP_NORM, sharded=rows, group=group)


def build_scaler(model: Recognizer, device: Device, group: ProcessGroup) -> torch.amp.GradScaler | None:
    """Return the scaler of the loss where gradients are in float16; None elsewhere."""
    if not device.scales:
        return None
    return make_scaler(device.main, enabled=True, group=group if model.is_partial else SINGLE_PROCESS)
