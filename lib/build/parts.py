"""TRAIN.BATCH_SIZE and TRAIN.DEVICE_BATCH_SIZE in the config -> how a batch is computed."""

from yacs.config import CfgNode

from lib.runtime.ranks import Ranks
from lib.trainer.parts import Parts, parts_of


def build_parts(cfg: CfgNode, batch_size: int, ranks: Ranks) -> Parts:
    """Return the parts of a batch of `batch_size` images, all ranks together."""
    return parts_of(batch_size, ranks, max(0, cfg.TRAIN.DEVICE_BATCH_SIZE))
