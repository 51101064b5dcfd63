"""What a single key cannot tell: combinations that do not work, and keys that nothing would read.

What does not go together in computing a batch in parts: on several ranks, in pieces, against some classes.
Methods that do not go together, each said in one line with what to do instead.
"""

from typing import Any

from lib.config.defaults import KEYS
from lib.config.keys.data import PAIRED
from lib.errors import UserError


def check_scale(values: dict[str, Any]) -> None:
    """Raise UserError for a combination that cannot be computed."""
    lean = _lean_key(values)
    auxiliary, at_once = values['LOSS.AUXILIARY'], values['TRAIN.DEVICE_BATCH_SIZE']
    if lean and auxiliary == 'distillation':
        raise UserError(
            f"LOSS.AUXILIARY distillation compares all logits with a teacher's, but {lean} keeps none: leave one of "
            'them out'
        )
    if values['MODEL.CLASSIFIER_SHARDED'] and auxiliary == 'balanced_contrastive':
        raise UserError(
            'LOSS.AUXILIARY balanced_contrastive compares images with all classes, but MODEL.CLASSIFIER_SHARDED True '
            "splits them: --LOSS_AUXILIARY ''"
        )
    if at_once and auxiliary == 'balanced_contrastive':
        raise UserError(
            'LOSS.AUXILIARY balanced_contrastive compares the images of a batch, but TRAIN.DEVICE_BATCH_SIZE '
            f'{at_once} computes it in parts: --TRAIN_DEVICE_BATCH_SIZE 0'
        )
    if at_once == 1:
        raise UserError('TRAIN.DEVICE_BATCH_SIZE is 1, but BatchNorm and pairs need at least 2 images at once')
    if at_once < 0 and values['MODEL.CLASSIFIER_SHARDED']:
        raise UserError(
            'TRAIN.DEVICE_BATCH_SIZE -1 tries on each GPU what fits, but MODEL.CLASSIFIER_SHARDED True computes no '
            'batch on one GPU alone: give a number'
        )
    if values['LOSS.SAMPLED_CLASSES'] < 1:
        _check_sampling(values)


def _lean_key(values: dict[str, Any]) -> str:
    """Return what computes classifier and loss together, for messages; '' when nothing does."""
    for name, plain in (('MODEL.CLASSIFIER_SHARDED', False), ('LOSS.CHUNK_IMAGES', 0), ('LOSS.SAMPLED_CLASSES', 1.0)):
        if values[name] != plain:
            return f'{name} {values[name]}'
    return ''


def _check_sampling(values: dict[str, Any]) -> None:
    share = values['LOSS.SAMPLED_CLASSES']
    if values['LOSS.TYPE'] == 'label_aware_smoothing' or values['LOSS.LABEL_SMOOTHING']:
        raise UserError(
            f'LOSS.SAMPLED_CLASSES {share:g} looks at some classes a step, but label smoothing needs all of them: '
            '--LOSS_LABEL_SMOOTHING 0 and another LOSS.TYPE than label_aware_smoothing, or --LOSS_SAMPLED_CLASSES 1'
        )


_COSINE = ('FCNorm', 'cosine')


def check_methods(values: dict[str, Any]) -> None:
    """Raise UserError for a combination of losses, mixing, stages and samplers that cannot be meant."""
    _check_loss(values)
    _check_mixing(values)
    _check_classifier(values)
    _check_auxiliary(values)


def _check_loss(values: dict[str, Any]) -> None:
    loss, classifier = values['LOSS.TYPE'], values['MODEL.CLASSIFIER']
    if loss in ('arcface', 'cosface') and classifier not in _COSINE:
        raise UserError(
            f'LOSS.TYPE {loss} sets margins between angles, but MODEL.CLASSIFIER {classifier} has none: '
            '--MODEL_CLASSIFIER FCNorm'
        )
    if values['LOSS.REWEIGHT_EPOCH'] and not values['LOSS.CLASS_WEIGHTS'] and loss != 'influence_balanced':
        raise UserError(
            f'LOSS.REWEIGHT_EPOCH is {values["LOSS.REWEIGHT_EPOCH"]}, but LOSS.CLASS_WEIGHTS names no weights: '
            '--LOSS_CLASS_WEIGHTS effective_number'
        )


def _check_mixing(values: dict[str, Any]) -> None:
    mix, batch = values['MIX.TYPE'], values['TRAIN.BATCH_SIZE']
    if not mix:
        return
    if mix not in PAIRED and batch % 2:
        raise UserError(f'MIX.TYPE {mix} mixes pairs, but TRAIN.BATCH_SIZE {batch} is odd: take an even one')
    if values['SAMPLER.IMAGES_PER_CLASS']:
        raise UserError(
            f'SAMPLER.IMAGES_PER_CLASS is {values["SAMPLER.IMAGES_PER_CLASS"]}, which puts images of one class side by '
            f'side, but MIX.TYPE {mix} makes pairs of neighbours: leave one of them out'
        )
    if mix == 'manifold_mixup':
        stages = values['MIX.STAGES']
        if not stages or any(stage != int(stage) for stage in stages):
            raise UserError(f'MIX.STAGES is {stages}, but must be whole numbers: 0 (the image), 1 (first stage), ...')
        if values['MODEL.FREEZE_BACKBONE'] and values['MODEL.SHIFT_BATCHNORM']:
            raise UserError(
                'MIX.TYPE manifold_mixup would shift BatchNorm to mixed features (MODEL.SHIFT_BATCHNORM True): '
                '--MIX_TYPE mixup'
            )


def _check_classifier(values: dict[str, Any]) -> None:
    classifier, resumed = values['MODEL.CLASSIFIER'], values['RESUME_MODEL']
    if values['MODEL.SHIFT_BATCHNORM'] and not values['MODEL.FREEZE_BACKBONE']:
        raise UserError('MODEL.SHIFT_BATCHNORM True is for a frozen backbone: --MODEL_FREEZE_BACKBONE True')
    if values['MODEL.FREEZE_BACKBONE'] and not resumed and not values['MODEL.PRETRAINED']:
        raise UserError(
            'MODEL.FREEZE_BACKBONE True would train a classifier on random features: give the first stage '
            '(--RESUME_MODEL log/NAME/last.pth) or MODEL.PRETRAINED'
        )
    if values['MODEL.FREEZE_BACKBONE'] and values['OPTIMIZER.LAYER_DECAY'] < 1:
        raise UserError(
            f'OPTIMIZER.LAYER_DECAY is {values["OPTIMIZER.LAYER_DECAY"]:g}, but MODEL.FREEZE_BACKBONE True trains no '
            'block of the backbone: --OPTIMIZER_LAYER_DECAY 1'
        )
    if values['MODEL.CLASSIFIER_INIT'] != 'checkpoint' and not resumed:
        raise UserError(
            f'MODEL.CLASSIFIER_INIT is {values["MODEL.CLASSIFIER_INIT"]}, which is for a second stage: give the first '
            '(--RESUME_MODEL log/NAME/last.pth)'
        )
    if values['MODEL.CLASSIFIER_INIT'] == 'class_means' and classifier == 'lws':
        raise UserError(
            'MODEL.CLASSIFIER_INIT class_means is for MODEL.CLASSIFIER FC or FCNorm, not lws: --MODEL_CLASSIFIER FCNorm'
        )
    if values['OPTIMIZER.MAX_NORM'] and classifier in _COSINE:
        raise UserError(
            f'OPTIMIZER.MAX_NORM is {values["OPTIMIZER.MAX_NORM"]:g}, but the norms of MODEL.CLASSIFIER {classifier} '
            'do not matter: --MODEL_CLASSIFIER FC'
        )


def _check_auxiliary(values: dict[str, Any]) -> None:
    auxiliary, mix = values['LOSS.AUXILIARY'], values['MIX.TYPE']
    if auxiliary == 'balanced_contrastive':
        if mix:
            raise UserError(
                f'LOSS.AUXILIARY balanced_contrastive compares images of one label, but MIX.TYPE {mix} mixes labels: '
                "--MIX_TYPE ''"
            )
        if values['MODEL.FREEZE_BACKBONE']:
            raise UserError(
                'LOSS.AUXILIARY balanced_contrastive trains the backbone, which MODEL.FREEZE_BACKBONE True keeps as it '
                "is: --LOSS_AUXILIARY ''"
            )
    if auxiliary == 'distillation':
        if not values['LOSS.TEACHER']:
            raise UserError('LOSS.AUXILIARY distillation needs a teacher: --LOSS_TEACHER log/NAME/last.pth')
        if mix == 'manifold_mixup':
            raise UserError(
                'LOSS.AUXILIARY distillation shows the teacher the same images, but MIX.TYPE manifold_mixup mixes '
                'within the student: --MIX_TYPE mixup'
            )
        if values['LOSS.AUXILIARY_WEIGHT'] > 1:
            raise UserError(
                f'LOSS.AUXILIARY_WEIGHT is {values["LOSS.AUXILIARY_WEIGHT"]:g}, but as the share of distillation it '
                'must be at most 1'
            )


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
    if smallest is not None and sizes and min(sizes) < smallest:
        raise UserError(f'INPUT.SIZE_SCHEDULE is {schedule}, but its sizes must be at least {smallest} pixels')


def _check_name(values: dict[str, Any]) -> None:
    name = values['NAME']
    if not name or name in ('.', '..') or any(letter in name for letter in '/\\\0') or len(name) > 200:
        raise UserError(f'NAME is {name!r}, but must be the name of one folder, such as my_run')
