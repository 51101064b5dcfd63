"""Resolve 'auto' in MODEL.PRETRAINED and INPUT: images are preprocessed as those that the weights were trained with.

torch and timm are imported only where the weights are timm's or a file's, so that other commands start without them.
"""

import logging
from pathlib import Path
from typing import Any

from lib.backbone.bundled import BUNDLED, IMAGENET, Preprocessing, bundled_weights
from lib.config.defaults import KEYS, Config
from lib.config.key import AUTO
from lib.config.yaml_text import as_node, as_values
from lib.runtime.log import LOGGER


def uses_recipe(cfg: Config) -> bool:
    """Return whether the number of training images determines learning rate or epochs, and with them the sizes."""
    return is_auto('TRAIN.MAX_EPOCH', cfg.TRAIN.MAX_EPOCH) or is_auto('OPTIMIZER.LR', cfg.OPTIMIZER.LR)


def resolve_preprocessing(cfg: Config, *, trains: bool = False, is_resumed: bool = False) -> Config:
    """Return the config with values for 'auto' in MODEL.PRETRAINED and INPUT.

    Args:
        trains: log the preprocessing of the weights that the run starts with, and leave INPUT.SIZE and INPUT.TEST_SIZE
            to its recipe if it has one (`uses_recipe`).
        is_resumed: the model is that of a checkpoint, whose config contains the values already.

    Raises:
        UserError: MODEL.PRETRAINED is bundled, but MODEL.BACKBONE has no such weights; an unknown MODEL.BACKBONE.
    """
    values = as_values(cfg)
    if values['MODEL.PRETRAINED'] == AUTO:
        values['MODEL.PRETRAINED'] = 'bundled' if cfg.MODEL.BACKBONE in BUNDLED else ''
    unresolved = {name for name in values if name.startswith('INPUT.') and is_auto(name, values[name])}
    starts = trains and not is_resumed and bool(values['MODEL.PRETRAINED'])
    if unresolved or starts:
        found, notes = _preprocessing_of(cfg.MODEL.BACKBONE, values['MODEL.PRETRAINED'])
        by_key = _by_key(found)
        if trains and uses_recipe(cfg):
            by_key = {name: value for name, value in by_key.items() if name not in ('INPUT.SIZE', 'INPUT.TEST_SIZE')}
        if starts:
            _log(found, notes, values, by_key)
        values |= {name: value for name, value in by_key.items() if name in unresolved}
    return as_node(values)


def is_auto(name: str, value: object) -> bool:
    return bool(KEYS[name].plain(value) == AUTO)


def _by_key(found: Preprocessing) -> dict[str, Any]:
    return {
        'INPUT.SIZE': found.size,
        'INPUT.TEST_SIZE': 0,
        'INPUT.MEAN': found.mean,
        'INPUT.STD': found.std,
        'INPUT.CROP_RATIO': found.crop_ratio,
        'INPUT.INTERPOLATION': found.interpolation,
    }


def _preprocessing_of(backbone: str, pretrained: str) -> tuple[Preprocessing, list[str]]:
    """Return the preprocessing for weights, and lines for the log if they may be of several kinds."""
    if not pretrained:
        return IMAGENET, []
    if pretrained == 'bundled':
        return bundled_weights(backbone).preprocessing, []
    from lib.backbone.create import published_preprocessing

    file = '' if pretrained == 'timm' else Path(pretrained).name
    published = published_preprocessing(backbone, file)
    if published is None:
        return IMAGENET, []
    notes = []
    if published.others:
        notes = [
            f'{file}: preprocessed as {published.weights}',
            f'  if it is of another kind, name that: --MODEL_BACKBONE {published.others}',
        ]
    return published.preprocessing, notes


def _log(found: Preprocessing, notes: list[str], values: dict[str, Any], by_key: dict[str, Any]) -> None:
    size = f'{found.size} px, ' if 'INPUT.SIZE' in by_key and is_auto('INPUT.SIZE', values['INPUT.SIZE']) else ''
    statistics = f'mean {_numbers(found.mean)}, std {_numbers(found.std)}'
    if (found.mean, found.std) == (IMAGENET.mean, IMAGENET.std):
        statistics = 'ImageNet mean/std'
    line = f'preprocessing of the weights: {size}{statistics}, {found.interpolation}, crop {found.crop_ratio:g}'
    for note in (line, *notes):
        LOGGER.info('%s', note)
    for name in ('INPUT.MEAN', 'INPUT.STD'):
        if not is_auto(name, values[name]) and values[name] != by_key[name]:
            LOGGER.log(logging.WARNING, '%s is %s, not that of the weights', name, _numbers(values[name]))


def _numbers(values: tuple[float, ...]) -> str:
    return f'{values[0]:g}' if len(set(values)) == 1 else ' '.join(f'{value:.3g}' for value in values)
