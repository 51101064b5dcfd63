"""OPTIMIZER and SCHEDULE -> the optimizer of this rank's parameters, and the learning rate of every step."""

from collections.abc import Callable, Iterable
from functools import partial

import torch

from lib.backbone.tuning import blocks_of
from lib.config.defaults import Config
from lib.distributed.fully_sharded import FullySharded
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.model import Recognizer
from lib.optim.gradients import clip_gradients, create_grad_scaler
from lib.optim.optimizer import create_lbfgs, create_optimizer, layer_lr_scales, project_to_max_norm
from lib.optim.schedule import cosine, multistep, one_cycle, warmup_epochs
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
    """Return a function of the global step -> learning rate; constant for a run of 0 epochs."""
    if cfg.TRAIN.MAX_EPOCH == 0:
        return lambda step: cfg.OPTIMIZER.LR
    schedule = cfg.SCHEDULE
    warmup = warmup_epochs(schedule.WARMUP_EPOCHS, schedule.WARMUP_FRACTION, cfg.TRAIN.MAX_EPOCH)
    return SCHEDULES[schedule.TYPE](cfg, steps_per_epoch=steps_per_epoch, warmup_epochs=warmup)


def build_optimizer(cfg: Config, model: Recognizer) -> torch.optim.Optimizer:
    """Return the optimizer of the trainable parameters.

    Raises:
        UserError: OPTIMIZER.MAX_NORM would change a frozen classifier, or OPTIMIZER.LAYER_DECAY does not know the
            blocks of the backbone.
    """
    options = cfg.OPTIMIZER
    if options.TYPE == 'lbfgs':
        return create_lbfgs(model)
    lr_scales = None
    if options.LAYER_DECAY < 1:
        scales = layer_lr_scales(model.backbone, options.LAYER_DECAY, name=cfg.MODEL.BACKBONE)
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
                f'OPTIMIZER.MAX_NORM is {options.MAX_NORM:g}, but MODEL.FREEZE_CLASSIFIER True freezes the '
                'rows: leave one of them out'
            )
        project_to_max_norm(optimizer, model.classifier.weight, options.MAX_NORM)
    return optimizer


def shard_backbone(
    cfg: Config, model: Recognizer, optimizer: torch.optim.Optimizer, group: ProcessGroup
) -> FullySharded:
    """Split the parameters of the backbone over the ranks, and let the optimizer update those of this rank.

    Raises:
        UserError: there is one process; the backbone is to be compiled.
    """
    if group.world_size == 1:
        raise UserError(
            'MODEL.BACKBONE_SHARDED True splits the backbone over the ranks of torchrun, but there is one process: '
            'torchrun --nproc-per-node 2 main.py ..., or --MODEL_BACKBONE_SHARDED False'
        )
    if cfg.RUN.COMPILE:
        raise UserError(
            'RUN.COMPILE True compiles the backbone of each rank alone, but MODEL.BACKBONE_SHARDED True splits it over '
            'the ranks: --RUN_COMPILE False, or --MODEL_BACKBONE_SHARDED False'
        )
    sharded = FullySharded(model.backbone, blocks_of(model.backbone), group, prefix='backbone.')
    sharded.rows_in_place_of_whole(optimizer)
    return sharded


def build_clip(
    cfg: Config, model: Recognizer, group: ProcessGroup, backbone_rows: Iterable[torch.nn.Parameter] = ()
) -> Callable[[], torch.Tensor] | None:
    """Return a function that clips the gradients in place before a step; None: off.

    Args:
        backbone_rows: this rank's rows of a sharded backbone.
    """
    if not cfg.OPTIMIZER.CLIP_NORM:
        return None
    rows = [*(model.classifier.parameters() if model.is_sharded else ()), *backbone_rows]
    return partial(clip_gradients, list(model.parameters()), cfg.OPTIMIZER.CLIP_NORM, sharded=rows, group=group)


def build_scaler(
    model: Recognizer, device: Device, group: ProcessGroup, *, backbone_sharded: bool = False
) -> torch.amp.GradScaler | None:
    """Return the loss scaler for float16 gradients; None for other types."""
    if not device.needs_loss_scaling:
        return None
    gradients_differ = model.is_sharded or backbone_sharded
    return create_grad_scaler(device.main, enabled=True, group=group if gradients_differ else SINGLE_PROCESS)
