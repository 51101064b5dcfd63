"""What a single key cannot tell: combinations that do not work, and keys that nothing would read."""

from typing import Any

from lib.config.check_methods import check_methods
from lib.config.check_scale import check_scale
from lib.config.defaults import KEYS
from lib.errors import UserError


def check_values(values: dict[str, Any], levels: dict[str, int]) -> None:
    """Raise UserError for a combination that cannot be meant.

    Args:
        values: every key's value.
        levels: the number of the layer that set it; a higher one was nearer to the user, one below 0 is a default or
            the checkpoint's config, which passed these checks when its run was started.
    """
    _check_unused(values, levels)
    _check_shards(values, levels)
    check_methods(values)
    check_scale(values)
    _check_schedule(values)
    _check_sizes(values['INPUT.SIZE_SCHEDULE'])
    _check_name(values)
    if values['OPTIMIZER.NESTEROV'] and values['OPTIMIZER.TYPE'] == 'sgd' and values['OPTIMIZER.MOMENTUM'] == 0:
        raise UserError('OPTIMIZER.NESTEROV is True, which needs OPTIMIZER.MOMENTUM above 0')
    if values['SAMPLER.SWITCH_EPOCH'] and not values['SAMPLER.SWITCH_TYPE']:
        raise UserError(
            f'SAMPLER.SWITCH_EPOCH is {values["SAMPLER.SWITCH_EPOCH"]}, but SAMPLER.SWITCH_TYPE names no sampler'
        )
    batch, each = values['TRAIN.BATCH_SIZE'], values['SAMPLER.IMAGES_PER_CLASS']
    if each and batch % each:
        raise UserError(f'SAMPLER.IMAGES_PER_CLASS is {each}, but must divide TRAIN.BATCH_SIZE {batch}')
    for name in ('INPUT.SCALE', 'INPUT.RATIO'):
        pair = values[name]
        if len(pair) != 2 or pair[0] > pair[1]:
            raise UserError(f'{name} is {pair}, but must be two numbers, the smaller one first')
    for name in ('INPUT.MEAN', 'INPUT.STD'):
        if len(values[name]) != 3:
            raise UserError(f'{name} is {values[name]}, but must be three numbers, one a channel')
    jitter = values['INPUT.COLOR_JITTER']
    if len(jitter) != 4 or jitter[3] > 0.5:
        raise UserError(
            f'INPUT.COLOR_JITTER is {jitter}, but must be four numbers: brightness, contrast, saturation, and hue of '
            'at most 0.5'
        )
    if len(values['OPTIMIZER.BETAS']) != 2:
        raise UserError(f'OPTIMIZER.BETAS is {values["OPTIMIZER.BETAS"]}, but must be two numbers')


def _check_unused(values: dict[str, Any], levels: dict[str, int]) -> None:
    """A key that the chosen method does not use is a mistake, if it was set no earlier than the method was chosen.

    A lower layer may well have set what a higher one made pointless: --OPTIMIZER_TYPE adamw over a recipe with
    MOMENTUM is fine.
    """
    for name, key in KEYS.items():
        if key.used_by is None or levels[name] < 0 or values[name] in (key.default, key.neutral):
            continue
        selector, users = key.used_by
        selectors = [selector, *key.or_by]
        is_used = any(values[chosen] in users for chosen in selectors)
        if not is_used and levels[name] >= max(levels[chosen] for chosen in selectors):
            raise UserError(
                f'{name} is {values[name]}, but {selector} {values[selector] or "(none)"} does not use it; '
                f'{" and ".join(users)} {"does" if len(users) == 1 else "do"}'
            )


def _check_shards(values: dict[str, Any], levels: dict[str, int]) -> None:
    """An annotation file that was named no earlier than the shards would be passed over without a word."""
    for name in ('DATASET.TRAIN_JSON', 'DATASET.VALID_JSON'):
        given = values[name] and levels[name] >= max(0, levels['DATASET.SHARDS'])
        if values['DATASET.SHARDS'] and given:
            raise UserError(
                f'{name} is {values[name]}, but DATASET.SHARDS {values["DATASET.SHARDS"]} holds the images and labels: '
                f"leave one out (--DATASET_SHARDS '' does)"
            )


def _check_schedule(values: dict[str, Any]) -> None:
    warmup, epochs = values['SCHEDULE.WARMUP_EPOCHS'], values['TRAIN.MAX_EPOCH']
    if 0 < epochs < warmup:  # without epochs there is no schedule
        raise UserError(f'SCHEDULE.WARMUP_EPOCHS is {warmup:g}, more than TRAIN.MAX_EPOCH {epochs}')
    if values['SCHEDULE.TYPE'] != 'multistep':
        return
    milestones, factors = values['SCHEDULE.MILESTONE_EPOCHS'], values['SCHEDULE.DECAY_FACTORS']
    if list(milestones) != sorted(set(milestones)):
        raise UserError(f'SCHEDULE.MILESTONE_EPOCHS is {milestones}, but must rise')
    if len(factors) not in (1, len(milestones)):
        raise UserError(
            f'SCHEDULE.DECAY_FACTORS has {len(factors)} numbers, but must have one, '
            f'or one for each of the {len(milestones)} SCHEDULE.MILESTONE_EPOCHS'
        )


def _check_sizes(schedule: tuple[int, ...]) -> None:
    epochs, sizes = schedule[::2], schedule[1::2]
    if len(epochs) != len(sizes):
        raise UserError(
            f'INPUT.SIZE_SCHEDULE is {schedule}, but must be pairs of epoch and pixels, such as 0,128,60,224'
        )
    if list(epochs) != sorted(set(epochs)):
        raise UserError(f'INPUT.SIZE_SCHEDULE is {schedule}, but its epochs must rise; they are {epochs}')
    smallest = KEYS['INPUT.SIZE'].low
    if sizes and min(sizes) < smallest:
        raise UserError(f'INPUT.SIZE_SCHEDULE is {schedule}, but its sizes must be at least {smallest} pixels')


def _check_name(values: dict[str, Any]) -> None:
    name = values['NAME']
    if not name or name in ('.', '..') or any(letter in name for letter in '/\\\0') or len(name) > 200:
        raise UserError(f'NAME is {name!r}, but must be the name of one folder, such as my_run')
