"""INPUT.SIZE and INPUT.SIZE_SCHEDULE in the config -> how large training images are, and when."""

from yacs.config import CfgNode


def train_sizes(cfg: CfgNode) -> dict[int, int]:
    """Return {epoch: side of training images from then on, pixels}; the first epoch is 0, and they rise."""
    schedule = cfg.INPUT.SIZE_SCHEDULE
    return {0: cfg.INPUT.SIZE, **dict(zip(schedule[::2], schedule[1::2], strict=True))}
