"""Resolve 'auto' in MODEL.PRETRAINED and INPUT: the images must look like those on which the weights were trained.

Imports neither torch nor timm, unless the weights are timm's: commands without them start as fast as before.
"""

from dataclasses import dataclass
from typing import Any

from lib.config.defaults import KEYS, Config
from lib.config.key import AUTO
from lib.config.yaml_text import as_node, as_values


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of images that a network was trained with.

    Attributes:
        size: side of its square images, pixels.
        mean, std: per channel (R, G, B) of pixel values from 0 to 1.
        crop_ratio: size over the short side from which it is cropped.
        interpolation: filter for resizing.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_ratio: float
    interpolation: str


WITHOUT_WEIGHTS = Preprocessing(112, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875, 'bilinear')


def uses_recipe(cfg: Config) -> bool:
    """Return whether sizes, learning rate or epochs are chosen by number of training images."""
    return KEYS['TRAIN.MAX_EPOCH'].auto == cfg.TRAIN.MAX_EPOCH or KEYS['OPTIMIZER.LR'].auto == cfg.OPTIMIZER.LR


def resolve_preprocessing(cfg: Config, *, with_recipe: bool = False) -> Config:
    """Return the config with values for 'auto' in MODEL.PRETRAINED and INPUT.

    Args:
        with_recipe: leave INPUT.SIZE and INPUT.TEST_SIZE to the recipe if the config has one (`uses_recipe`).
    """
    values = as_values(cfg)
    found = WITHOUT_WEIGHTS
    by_key: dict[str, Any] = {
        'INPUT.SIZE': found.size,
        'INPUT.TEST_SIZE': 0,
        'INPUT.MEAN': found.mean,
        'INPUT.STD': found.std,
        'INPUT.CROP_RATIO': found.crop_ratio,
        'INPUT.INTERPOLATION': found.interpolation,
    }
    if with_recipe and uses_recipe(cfg):
        del by_key['INPUT.SIZE'], by_key['INPUT.TEST_SIZE']
    changes = {name: value for name, value in by_key.items() if KEYS[name].plain(values[name]) == AUTO}
    return as_node(values | changes) if changes else cfg
