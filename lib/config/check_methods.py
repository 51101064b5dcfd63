"""Methods that do not go together, each said in one line with what to do instead."""

from typing import Any

from lib.config.keys.data import PAIRED
from lib.errors import UserError

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
