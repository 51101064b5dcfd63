"""The recipe of a run by its number of training images: what 'auto' leaves open, and when to use pretrained weights."""

import math
import shlex
from dataclasses import dataclass

from lib.builders.preprocessing import is_auto, uses_recipe
from lib.config.defaults import KEYS, Config
from lib.config.yaml_text import as_node, as_values
from lib.runtime.checkout import path_to_type
from lib.runtime.text import count_of

_FEW_IMAGES = 20_000  # with fewer, random weights are far behind pretrained ones
_LEAST_IMAGES = 9_600  # over all epochs: 300 steps, which even a few classes need
_FINETUNING_CONFIG = 'configs/own_photos.yaml'


@dataclass(frozen=True)
class Recipe:
    """Image sizes, learning rate and epochs of a run.

    Attributes:
        size, test_size: side of the images in training, and in validation and test, in pixels.
        lr: largest learning rate, for SGD with momentum 0.9 and batches of 32 images.
        max_epoch: epochs.
    """

    size: int
    test_size: int
    lr: float
    max_epoch: int


def finetuning_recipe(num_images: int) -> Recipe:
    """Return the recipe for pretrained weights.

    An epoch of few images is short, so there are more of them, of larger images. Images are tested at 1.125
    times the size: random crops enlarge objects by more than the center crop does, so a network sees them at the same
    size again (Touvron et al., NeurIPS 2019).
    """
    size = 160 if num_images <= 5_000 else 128
    max_epoch = min(30, max(5, round(40_000 / num_images)))
    return Recipe(size, round(1.125 * size), lr=0.02, max_epoch=max(max_epoch, math.ceil(_LEAST_IMAGES / num_images)))


def recipe_from_scratch() -> Recipe:
    """Return the recipe for random weights, which need many epochs however many images there are."""
    return Recipe(112, 0, lr=0.05, max_epoch=60)


def resolve_recipe(cfg: Config, num_images: int) -> Config:
    """Return the config with values for 'auto' in INPUT.SIZE, INPUT.TEST_SIZE, OPTIMIZER.LR and TRAIN.MAX_EPOCH.

    Args:
        num_images: number of images of the training set.
    """
    if not uses_recipe(cfg):
        return cfg
    recipe = finetuning_recipe(num_images) if cfg.MODEL.PRETRAINED else recipe_from_scratch()
    values = as_values(cfg)
    chosen = {
        'INPUT.SIZE': recipe.size,
        'INPUT.TEST_SIZE': recipe.test_size,
        'OPTIMIZER.LR': recipe.lr,
        'TRAIN.MAX_EPOCH': recipe.max_epoch,
    }
    values |= {name: value for name, value in chosen.items() if is_auto(name, values[name])}
    return as_node(values)


def describe_recipe(cfg: Config, num_images: int) -> str:
    """Return the line about the values of `resolve_recipe`."""
    size, test_size = cfg.INPUT.SIZE, cfg.INPUT.TEST_SIZE or cfg.INPUT.SIZE
    epochs = count_of(cfg.TRAIN.MAX_EPOCH, 'epoch')
    images = count_of(num_images, 'image')
    return f'recipe for {images}: {epochs} at {size} px (test: {test_size} px), lr {cfg.OPTIMIZER.LR:g}'


def finetuning_command(cfg: Config) -> list[str]:
    """Return the command that fine-tunes bundled weights on the data set of a config, as another run."""
    dataset, log_root = cfg.DATASET, cfg.LOG_ROOT
    options = {
        '--DATASET_ROOT': dataset.ROOT,
        '--DATASET_SHARDS': dataset.SHARDS,
        '--DATASET_TRAIN_JSON': dataset.TRAIN_JSON,
        '--DATASET_VALID_JSON': dataset.VALID_JSON,
        '--LOG_ROOT': '' if log_root == KEYS['LOG_ROOT'].default else log_root,
        '--NAME': f'{cfg.NAME}_pretrained',
    }
    given = [word for option, value in options.items() if value for word in (option, value)]
    return ['python', path_to_type('main.py'), '--config', path_to_type(_FINETUNING_CONFIG), *given]


def random_weights_advice(cfg: Config, num_images: int) -> str | None:
    """Return a log line for a run from random weights on few images: the command that is better; None for others."""
    if cfg.MODEL.PRETRAINED or cfg.DATASET.NAME != 'annotations' or num_images >= _FEW_IMAGES:
        return None
    command = shlex.join(finetuning_command(cfg))
    return f'{count_of(num_images, "image")}: few for random weights; better: {command}'
