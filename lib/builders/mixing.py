"""MIX -> a mixer, and the stages of the backbone after which features are mixed."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from lib.config.defaults import Config
from lib.errors import UserError
from lib.trainer.mixing.base import MixDraws, Mixer, unmixed
from lib.trainer.mixing.bbn import BBN
from lib.trainer.mixing.cmo import CMO
from lib.trainer.mixing.cutmix import CutMix
from lib.trainer.mixing.manifold import ManifoldMixup
from lib.trainer.mixing.mixup import Mixup
from lib.trainer.mixing.remix import Remix
from lib.trainer.mixing.stages import MixedStages, StageError

MIXERS: dict[str, Callable[[Config, MixDraws, torch.Tensor], Mixer]] = {
    'mixup': lambda cfg, draws, counts: Mixup(draws),
    'cutmix': lambda cfg, draws, counts: CutMix(draws),
    'manifold_mixup': lambda cfg, draws, counts: ManifoldMixup(draws, _stages(cfg)),
    'remix': lambda cfg, draws, counts: Remix(draws, counts, cfg.MIX.KAPPA, cfg.MIX.TAU),
    'cmo': lambda cfg, draws, counts: CMO(draws),
    'bbn': lambda cfg, draws, counts: BBN(cfg.TRAIN.MAX_EPOCH),
}


def build_mixer(cfg: Config, class_counts: np.ndarray, device: torch.device) -> Mixer:
    """Return the mixer of training batches.

    Args:
        class_counts: (num_classes,) training images per class after HEAD_CAP.
        device: device of the batches.
    """
    mix = cfg.MIX
    if not mix.TYPE:
        return unmixed
    draws = MixDraws(cfg.SEED, mix.ALPHA, mix.PROBABILITY, end_epoch=cfg.TRAIN.MAX_EPOCH - mix.OFF_EPOCHS)
    return MIXERS[mix.TYPE](cfg, draws, torch.from_numpy(class_counts).to(device))


def _stages(cfg: Config) -> tuple[int, ...]:
    return tuple(int(stage) for stage in cfg.MIX.STAGES)


def build_mixed_stages(cfg: Config, backbone: nn.Module) -> MixedStages | None:
    """Return the stages of the backbone for manifold mixup of features, else None.

    Raises:
        UserError: the backbone has no such stage.
    """
    if not _mixes_features(cfg):
        return None
    stages = MixedStages(backbone)
    for stage in _stages(cfg):
        try:
            stages.check(stage)
        except StageError as error:
            raise UserError(f'MIX.STAGES: {error}; leave {stage} out, or choose another MODEL.BACKBONE') from None
    return stages


def check_pairs(cfg: Config, num_images: int, num_replicas: int) -> None:
    """Raise UserError if a pair would be split between two GPUs.

    Args:
        num_images: images that a step runs through the backbone at once.
        num_replicas: GPUs that share them.
    """
    each = -(-num_images // max(1, num_replicas))
    if _mixes_features(cfg) and each % 2 and each < num_images:
        raise UserError(
            f'MIX.TYPE manifold_mixup mixes pairs within a GPU, but TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE} gives each '
            f'of {num_replicas} GPUs {each} images at once; try --TRAIN_BATCH_SIZE {(each + 1) * num_replicas}'
        )


def _mixes_features(cfg: Config) -> bool:
    return cfg.MIX.TYPE == 'manifold_mixup' and any(_stages(cfg))
