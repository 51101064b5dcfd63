"""Checks of settings that do not work with stored features."""

from typing import Any

from lib.errors import UserError

# Keys that change the images or the backbone within the run, and their values that do not.
_NEEDS_IMAGES: dict[str, object] = {
    'MIX.TYPE': '',
    'LOSS.AUXILIARY': '',
    'MODEL.SHIFT_BATCHNORM': False,
    'INPUT.SIZE_SCHEDULE': '',
}


def check_cached_features(values: dict[str, Any]) -> None:
    """Raise UserError if stored features cannot stand for the images of every step."""
    if values['TRAIN.FEATURES'] != 'cached':
        return
    if not values['MODEL.FREEZE_BACKBONE']:
        raise UserError(
            'TRAIN.FEATURES cached needs a frozen backbone: --MODEL_FREEZE_BACKBONE True, or --TRAIN_FEATURES images'
        )
    for name, off in _NEEDS_IMAGES.items():
        if values[name]:
            raise UserError(
                f'{name} {values[name]} needs the images of every step, but TRAIN.FEATURES is cached: '
                f'--{name.replace(".", "_")} {off!r}, or --TRAIN_FEATURES images'
            )
    views = values['TRAIN.FEATURE_VIEWS']
    augmented = values['INPUT.AUGMENT'] or any(values['INPUT.COLOR_JITTER']) or values['INPUT.ERASE_PROBABILITY']
    is_random = values['INPUT.TRAIN_TRANSFORM'] != 'center_crop' or augmented
    if views > 1 and not is_random:
        raise UserError(
            f'TRAIN.FEATURE_VIEWS is {views}, but nothing is random, so all views are equal: --TRAIN_FEATURE_VIEWS 1, '
            'or --INPUT_TRAIN_TRANSFORM random_resized_crop'
        )
