"""What does not go together in computing a batch in parts: on several ranks, in pieces, against some classes."""

from typing import Any

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
