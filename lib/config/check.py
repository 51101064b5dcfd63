"""Checks over several keys: settings that do not work together, and keys that the chosen method does not use."""

import math
from typing import Any

from lib.config.check_features import (
    COMPARING,
    check_auxiliary,
    check_cached_features,
    check_catalog,
    check_centers,
    check_embedding,
    check_lbfgs,
    check_proposals,
    check_sharded_backbone,
    check_tracking,
)
from lib.config.defaults import KEYS, LARGEST
from lib.config.key import AUTO
from lib.config.keys.data import PAIRED
from lib.config.keys.method import BUNDLED
from lib.errors import UserError, shown


def check_scale(values: dict[str, Any]) -> None:
    """Raise UserError if chunked, sharded or sampled classification does not work with the other settings."""
    setting = _without_logits(values)
    auxiliary, at_once = values['LOSS.AUXILIARY'], values['TRAIN.DEVICE_BATCH_SIZE']
    if setting and auxiliary == 'distillation':
        raise UserError(
            f'LOSS.AUXILIARY distillation needs the logits of all classes, but {setting} does not store them: set only '
            'one of them'
        )
    if values['MODEL.CLASSIFIER_SHARDED'] and auxiliary == 'balanced_contrastive':
        raise UserError(
            'LOSS.AUXILIARY balanced_contrastive compares images with all classes, but MODEL.CLASSIFIER_SHARDED True '
            "splits the classes over ranks: --LOSS_AUXILIARY ''"
        )
    if at_once and auxiliary in COMPARING:
        raise UserError(
            f'LOSS.AUXILIARY {auxiliary} compares the images of a batch, but TRAIN.DEVICE_BATCH_SIZE {at_once} splits '
            'it: --TRAIN_DEVICE_BATCH_SIZE 0'
        )
    if at_once == 1:
        raise UserError(
            'TRAIN.DEVICE_BATCH_SIZE is 1, but BatchNorm and mixing need at least 2 images: set 0, 2 or more'
        )
    for name in ('MODEL.CLASSIFIER_SHARDED', 'MODEL.BACKBONE_SHARDED'):
        if at_once < 0 and values[name]:
            raise UserError(
                f'TRAIN.DEVICE_BATCH_SIZE -1 measures what fits on each GPU alone, but {name} True needs all ranks in '
                'every step: give a number'
            )
    check_sharded_backbone(values)
    if values['LOSS.SAMPLED_CLASSES'] < 1:
        _check_sampling(values)


def _without_logits(values: dict[str, Any]) -> str:
    """Return the setting, for messages, that computes classifier and loss together; '' if there is none."""
    for name, default in (('MODEL.CLASSIFIER_SHARDED', False), ('LOSS.CHUNK_IMAGES', 0), ('LOSS.SAMPLED_CLASSES', 1.0)):
        if values[name] != default:
            return f'{name} {values[name]}'
    return ''


def _check_sampling(values: dict[str, Any]) -> None:
    fraction = values['LOSS.SAMPLED_CLASSES']
    if values['LOSS.TYPE'] == 'label_aware_smoothing' or values['LOSS.LABEL_SMOOTHING']:
        raise UserError(
            f'LOSS.SAMPLED_CLASSES {fraction:g} samples the classes of a step, but label smoothing needs all of them: '
            '--LOSS_LABEL_SMOOTHING 0 and another LOSS.TYPE than label_aware_smoothing, or --LOSS_SAMPLED_CLASSES 1'
        )


_COSINE = ('FCNorm', 'cosine')


def check_methods(values: dict[str, Any]) -> None:
    """Raise UserError if losses, mixing, stages and samplers do not work together."""
    _check_loss(values)
    _check_mixing(values)
    _check_classifier(values)
    check_auxiliary(values)
    check_embedding(values)
    check_cached_features(values)
    check_lbfgs(values)
    check_centers(values)
    check_tracking(values)
    check_catalog(values)
    check_proposals(values)


def _check_loss(values: dict[str, Any]) -> None:
    loss, classifier = values['LOSS.TYPE'], values['MODEL.CLASSIFIER']
    if loss in ('arcface', 'cosface') and classifier not in _COSINE:
        raise UserError(
            f'LOSS.TYPE {loss} needs a cosine classifier, but MODEL.CLASSIFIER is {classifier}: '
            '--MODEL_CLASSIFIER FCNorm'
        )
    if values['LOSS.REWEIGHT_EPOCH'] and not values['LOSS.CLASS_WEIGHTS'] and loss != 'influence_balanced':
        raise UserError(
            f'LOSS.REWEIGHT_EPOCH is {values["LOSS.REWEIGHT_EPOCH"]}, but LOSS.CLASS_WEIGHTS is empty: '
            '--LOSS_CLASS_WEIGHTS effective_number'
        )


def _check_mixing(values: dict[str, Any]) -> None:
    mix, batch = values['MIX.TYPE'], values['TRAIN.BATCH_SIZE']
    if not mix:
        return
    if mix not in PAIRED and batch % 2:
        raise UserError(f'MIX.TYPE {mix} mixes pairs, but TRAIN.BATCH_SIZE {batch} is odd: set an even number')
    if values['SAMPLER.IMAGES_PER_CLASS']:
        raise UserError(
            f'SAMPLER.IMAGES_PER_CLASS is {values["SAMPLER.IMAGES_PER_CLASS"]}, which makes adjacent images equal in '
            f'class, but MIX.TYPE {mix} mixes adjacent images: set only one of them'
        )
    if mix == 'manifold_mixup':
        stages = values['MIX.STAGES']
        if not stages or any(stage != int(stage) for stage in stages):
            raise UserError(
                f'MIX.STAGES is {shown(stages)}, but must be whole numbers such as 0,1,2: 0 (the image), 1 (first '
                'stage)'
            )
        if values['MODEL.FREEZE_BACKBONE'] and values['MODEL.SHIFT_BATCHNORM']:
            raise UserError(
                'MIX.TYPE manifold_mixup would update BatchNorm statistics with mixed features '
                '(MODEL.SHIFT_BATCHNORM True): --MIX_TYPE mixup'
            )


def _check_classifier(values: dict[str, Any]) -> None:
    classifier, resumed = values['MODEL.CLASSIFIER'], values['RESUME_MODEL']
    if values['MODEL.SHIFT_BATCHNORM'] and not values['MODEL.FREEZE_BACKBONE']:
        raise UserError('MODEL.SHIFT_BATCHNORM True needs a frozen backbone: --MODEL_FREEZE_BACKBONE True')
    pretrained = values['MODEL.PRETRAINED']
    pretrained = values['MODEL.BACKBONE'] in BUNDLED if pretrained == AUTO else pretrained
    if values['MODEL.FREEZE_BACKBONE'] and not resumed and not pretrained:
        raise UserError(
            'MODEL.FREEZE_BACKBONE True needs a trained backbone: give a first stage (--RESUME_MODEL '
            'log/NAME/last.pth), --MODEL_PRETRAINED timm, or bundled weights (--MODEL_BACKBONE tf_efficientnet_lite0)'
        )
    if values['MODEL.FREEZE_BACKBONE'] and values['OPTIMIZER.LAYER_DECAY'] < 1:
        raise UserError(
            f'OPTIMIZER.LAYER_DECAY is {values["OPTIMIZER.LAYER_DECAY"]:g}, but MODEL.FREEZE_BACKBONE True trains no '
            'block of the backbone: --OPTIMIZER_LAYER_DECAY 1'
        )
    _check_classifier_init(values, pretrained)
    if values['OPTIMIZER.MAX_NORM'] and classifier in _COSINE:
        raise UserError(
            f'OPTIMIZER.MAX_NORM is {values["OPTIMIZER.MAX_NORM"]:g}, but MODEL.CLASSIFIER {classifier} '
            'normalizes its rows anyway: --MODEL_CLASSIFIER FC'
        )


def _check_classifier_init(values: dict[str, Any], pretrained: object) -> None:
    """Raise UserError if there is nothing to initialize the classifier from; `pretrained` is the backbone's source."""
    start, classifier = values['MODEL.CLASSIFIER_INIT'], values['MODEL.CLASSIFIER']
    if start == 'random' and not values['RESUME_MODEL']:
        raise UserError('MODEL.CLASSIFIER_INIT is random, which needs a first stage: --RESUME_MODEL log/NAME/last.pth')
    if start in ('class_means', 'text') and not values['RESUME_MODEL'] and not pretrained:
        raise UserError(
            f'MODEL.CLASSIFIER_INIT is {start}, which needs a first stage (--RESUME_MODEL log/NAME/last.pth) or '
            'pretrained weights (--MODEL_PRETRAINED timm)'
        )
    if start == 'class_means' and classifier == 'lws':
        raise UserError(
            'MODEL.CLASSIFIER_INIT class_means needs MODEL.CLASSIFIER FC or FCNorm, not lws: --MODEL_CLASSIFIER FCNorm'
        )
    if start == 'text' and classifier not in _COSINE:
        raise UserError(
            f'MODEL.CLASSIFIER_INIT text needs a cosine classifier, but MODEL.CLASSIFIER is {classifier}: '
            '--MODEL_CLASSIFIER FCNorm'
        )


def check_values(values: dict[str, Any], levels: dict[str, int]) -> None:
    """Raise UserError if settings do not work together, or if a key was set that the chosen method does not use.

    Args:
        values: value of every key.
        levels: number of the layer that set each key; higher layers win. Below 0 are the defaults and the checkpoint's
            config, which passed these checks when its run was started.
    """
    for name, largest in LARGEST.items():
        if max((0, *values[name]) if isinstance(values[name], tuple) else (values[name],)) > largest:
            raise UserError(f'{name} is {shown(values[name])}, but at most {largest} is possible')
    _check_unused(values, levels)
    _check_shards(values, levels)
    check_methods(values)
    check_scale(values)
    _check_schedule(values)
    _check_sizes(values['INPUT.SIZE_SCHEDULE'])
    _check_name(values)
    if values['OPTIMIZER.NESTEROV'] and values['OPTIMIZER.TYPE'] == 'sgd' and values['OPTIMIZER.MOMENTUM'] == 0:
        raise UserError('OPTIMIZER.NESTEROV is True, which needs OPTIMIZER.MOMENTUM above 0: --OPTIMIZER_MOMENTUM 0.9')
    if values['SAMPLER.SWITCH_EPOCH'] and not values['SAMPLER.SWITCH_TYPE']:
        raise UserError(
            f'SAMPLER.SWITCH_EPOCH is {values["SAMPLER.SWITCH_EPOCH"]}, but SAMPLER.SWITCH_TYPE is empty: '
            '--SAMPLER_SWITCH_TYPE class_balance'
        )
    batch, each = values['TRAIN.BATCH_SIZE'], values['SAMPLER.IMAGES_PER_CLASS']
    if each and batch % each:
        raise UserError(f'SAMPLER.IMAGES_PER_CLASS is {each}, but must divide TRAIN.BATCH_SIZE {batch}')
    for name in ('INPUT.SCALE', 'INPUT.RATIO'):
        pair = values[name]
        if len(pair) != 2 or pair[0] > pair[1]:
            raise UserError(f'{name} is {shown(pair)}, but must be two numbers, the smaller one first, such as 0.5,1')
    for name in ('INPUT.MEAN', 'INPUT.STD'):
        if len(values[name]) not in (0, 3):  # none: auto
            raise UserError(f'{name} is {shown(values[name])}, but must be three numbers, one per channel')
    jitter = values['INPUT.COLOR_JITTER']
    if len(jitter) != 4 or jitter[3] > 0.5:
        raise UserError(
            f'INPUT.COLOR_JITTER is {shown(jitter)}, but must be four numbers: brightness, contrast, saturation, and '
            'hue of at most 0.5'
        )
    if len(values['OPTIMIZER.BETAS']) != 2:
        raise UserError(f'OPTIMIZER.BETAS is {shown(values["OPTIMIZER.BETAS"])}, but must be two numbers')


def _check_unused(values: dict[str, Any], levels: dict[str, int]) -> None:
    """Raise UserError if a key is set that the chosen method does not use, by the layer that chose it or a higher one.

    A lower layer may set such a key: --OPTIMIZER_TYPE adamw over a recipe with MOMENTUM is allowed.
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
    """Raise UserError if annotations would be ignored: set by the layer that set the shards, or a higher one."""
    for name in ('DATASET.TRAIN_JSON', 'DATASET.VALID_JSON'):
        given = values[name] and levels[name] >= max(0, levels['DATASET.SHARDS'])
        if values['DATASET.SHARDS'] and given:
            raise UserError(
                f'{name} is {values[name]}, but DATASET.SHARDS {values["DATASET.SHARDS"]} contains images and labels: '
                "set only one of them (--DATASET_SHARDS '' turns shards off)"
            )


def _check_schedule(values: dict[str, Any]) -> None:
    kind, warmup, epochs = values['SCHEDULE.TYPE'], values['SCHEDULE.WARMUP_EPOCHS'], values['TRAIN.MAX_EPOCH']
    longest = epochs if kind == 'multistep' else math.nextafter(epochs, 0)  # the others fall after the warm-up
    if epochs > 0 and warmup > longest:  # without epochs there is no schedule; auto is checked when it is resolved
        raise UserError(
            f'SCHEDULE.WARMUP_EPOCHS is {warmup:g}, but TRAIN.MAX_EPOCH is {epochs}: give fewer, or a fraction of the '
            'run instead, --SCHEDULE_WARMUP_FRACTION 0.1'
        )
    if kind != 'multistep':
        return
    milestones, factors = values['SCHEDULE.MILESTONE_EPOCHS'], values['SCHEDULE.DECAY_FACTORS']
    if list(milestones) != sorted(set(milestones)):
        raise UserError(f'SCHEDULE.MILESTONE_EPOCHS is {shown(milestones)}, but must increase')
    if len(factors) not in (1, len(milestones)):
        raise UserError(
            f'SCHEDULE.DECAY_FACTORS has {len(factors)} numbers, but must have one, '
            f'or one for each of the {len(milestones)} SCHEDULE.MILESTONE_EPOCHS'
        )


def _check_sizes(schedule: tuple[int, ...]) -> None:
    epochs, sizes = schedule[::2], schedule[1::2]
    if len(epochs) != len(sizes):
        raise UserError(
            f'INPUT.SIZE_SCHEDULE is {shown(schedule)}, but must be pairs of epoch and pixels, such as 0,128,60,224'
        )
    if list(epochs) != sorted(set(epochs)):
        raise UserError(f'INPUT.SIZE_SCHEDULE is {shown(schedule)}, but its epochs must increase; they are {epochs}')
    smallest = KEYS['INPUT.SIZE'].low
    if smallest is not None and sizes and min(sizes) < smallest:
        raise UserError(f'INPUT.SIZE_SCHEDULE is {shown(schedule)}, but its sizes must be at least {smallest} pixels')


def _check_name(values: dict[str, Any]) -> None:
    name = values['NAME']
    if not name or name in ('.', '..') or any(letter in name for letter in '/\\\0') or len(name) > 200:
        raise UserError(f'NAME is {shown(name)}, but must be the name of one folder, such as my_run')
