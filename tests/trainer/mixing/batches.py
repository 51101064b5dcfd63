"""Batches for the tests of mixing, and every mixer with the same draws."""

import numpy as np
import torch

from lib.trainer.mixing.base import MixDraws
from lib.trainer.mixing.bbn import BBN
from lib.trainer.mixing.cmo import CMO
from lib.trainer.mixing.cutmix import CutMix
from lib.trainer.mixing.manifold import ManifoldMixup
from lib.trainer.mixing.mixup import Mixup
from lib.trainer.mixing.remix import Remix

COUNTS = torch.tensor([500, 100, 40, 9, 3, 1])
MIXERS = {
    'mixup': Mixup,
    'cutmix': CutMix,
    'manifold_pixels': lambda draws: ManifoldMixup(draws, (0,)),
    'manifold_features': lambda draws: ManifoldMixup(draws, (2,)),
    'remix': lambda draws: Remix(draws, COUNTS, 3.0, 0.5),
    'cmo': CMO,
}
ALL = {**MIXERS, 'bbn': lambda draws: BBN(10)}


def mixer_of(name: str, *, seed: int = 0, alpha: float = 1.0, probability: float = 1.0, end_epoch: int | None = None):
    return ALL[name](MixDraws(seed, alpha, probability, end_epoch))


def random_batch(seed: int, size: int, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (size, 3, side, side) float32 and labels (size,) int64."""
    random = np.random.default_rng(seed)
    images = random.normal(size=(size, 3, side, side)).astype(np.float32)
    return torch.from_numpy(images), torch.from_numpy(random.integers(0, len(COUNTS), size))


def painted_batch(size: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of one color each, image i of color i + 1, with labels 0, 1, ..."""
    numbers = torch.arange(size)
    return (numbers + 1.0).view(-1, 1, 1, 1).expand(size, 3, height, width).contiguous(), numbers


def image_lam(mixed) -> torch.Tensor:
    return mixed.targets.lam[:, 0]
