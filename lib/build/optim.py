"""OPTIMIZER and SCHEDULE in the config -> the optimiser, and the learning rate of every step."""

from collections.abc import Callable

import torch
from torch import nn
from yacs.config import CfgNode

from lib.optim.optimizer import create_optimizer
from lib.optim.schedule import cosine, multistep, one_cycle

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


def build_schedule(cfg: CfgNode, steps_per_epoch: int) -> Callable[[int], float]:
    """Return global step -> learning rate."""
    return SCHEDULES[cfg.SCHEDULE.TYPE](cfg, steps_per_epoch=steps_per_epoch, warmup_epochs=cfg.SCHEDULE.WARMUP_EPOCHS)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of the parameters that are trained."""
    optimizer = cfg.OPTIMIZER
    return create_optimizer(
        model,
        kind=optimizer.TYPE,
        lr=optimizer.LR,
        momentum=optimizer.MOMENTUM,
        nesterov=optimizer.NESTEROV,
        weight_decay=optimizer.WEIGHT_DECAY,
        betas=optimizer.BETAS,
        decay_norm_and_bias=optimizer.DECAY_NORM_AND_BIAS,
    )
