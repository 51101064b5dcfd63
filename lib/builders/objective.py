"""LOSS -> the objective of training: the loss, and optionally an auxiliary loss beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.builders.loss import build_loss
from lib.builders.model import class_names, model_of
from lib.config.defaults import Config
from lib.config.load import merge_checkpoint_config
from lib.distributed.parallel import wrap_parallel
from lib.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from lib.errors import UserError
from lib.export.openvino_model import require
from lib.loss.balanced_contrastive import BalancedContrastive
from lib.loss.distillation import Distillation
from lib.loss.metric import MetricLoss, batch_hard_triplet, multi_similarity, supervised_contrastive
from lib.loss.weighted import WeightedLoss
from lib.model import Recognizer
from lib.runtime.device import Device
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.io import read_checkpoint
from lib.trainer.checkpointing.state import Checkpoint
from lib.trainer.chunked_head import ChunkedHead
from lib.trainer.forward import Head, WholeHead
from lib.trainer.objective import AuxiliaryTerm, ContrastTerm, DistillTerm, MetricTerm, Objective

# Keys that the teacher must share, since it gets the images of the student.
_SAME_IMAGES = ('DATASET.COLOR_SPACE', 'INPUT.MEAN', 'INPUT.STD')


class AuxiliaryLoss(NamedTuple):
    """An auxiliary loss with its weight, and the weight of the main loss."""

    term: AuxiliaryTerm | None
    weight: float
    loss_weight: float


@dataclass(frozen=True)
class AuxiliaryInputs:
    """The inputs of an auxiliary loss beside the config: those of `build_objective`."""

    model: Recognizer
    device: Device
    names: Sequence[str]
    group: ProcessGroup


def _no_auxiliary(cfg: Config, inputs: AuxiliaryInputs) -> AuxiliaryLoss:
    return AuxiliaryLoss(None, 0.0, 1.0)


def _contrast(cfg: Config, inputs: AuxiliaryInputs) -> AuxiliaryLoss:
    loss = BalancedContrastive(cfg.LOSS.CONTRAST_TEMPERATURE)
    return AuxiliaryLoss(ContrastTerm(inputs.model, loss), cfg.LOSS.AUXILIARY_WEIGHT, 1.0)


def _metric(create: Callable[[Config], MetricLoss]) -> Callable[[Config, AuxiliaryInputs], AuxiliaryLoss]:
    def auxiliary(cfg: Config, inputs: AuxiliaryInputs) -> AuxiliaryLoss:
        require(('pytorch_metric_learning',), f'LOSS.AUXILIARY {cfg.LOSS.AUXILIARY}')
        return AuxiliaryLoss(MetricTerm(create(cfg), inputs.group), cfg.LOSS.AUXILIARY_WEIGHT, 1.0)

    return auxiliary


def _distill(cfg: Config, inputs: AuxiliaryInputs) -> AuxiliaryLoss:
    weight, device = cfg.LOSS.AUXILIARY_WEIGHT, inputs.device
    teacher = _teacher(cfg, device, inputs.model.classifier.weight.shape[0], inputs.names)
    loss = Distillation(cfg.LOSS.TEACHER_TEMPERATURE, cfg.LOSS.TEACHER_POWER)
    return AuxiliaryLoss(
        DistillTerm(wrap_parallel(teacher, device, SINGLE_PROCESS, num_images=cfg.TRAIN.BATCH_SIZE), loss),
        weight,
        1.0 - weight,
    )


AUXILIARIES: dict[str, Callable[[Config, AuxiliaryInputs], AuxiliaryLoss]] = {
    '': _no_auxiliary,
    'balanced_contrastive': _contrast,
    'distillation': _distill,
    'triplet': _metric(lambda cfg: batch_hard_triplet()),
    'multi_similarity': _metric(lambda cfg: multi_similarity()),
    'supervised_contrastive': _metric(lambda cfg: supervised_contrastive(cfg.LOSS.CONTRAST_TEMPERATURE)),
}


def is_chunked(cfg: Config) -> bool:
    """Return whether classifier and loss are computed together, without the logits of a whole batch."""
    return bool(cfg.LOSS.CHUNK_IMAGES) or cfg.LOSS.SAMPLED_CLASSES < 1 or cfg.MODEL.CLASSIFIER_SHARDED


def build_objective(
    cfg: Config,
    class_counts: np.ndarray,
    model: Recognizer,
    device: Device,
    names: Sequence[str] = (),
    group: ProcessGroup = SINGLE_PROCESS,
) -> Objective:
    """Return the objective on the device.

    Args:
        class_counts: (num_classes,) training images per class after HEAD_CAP.
        model: trained.
        names: names of its classes; a teacher must have the same names in the same order. Empty: not compared.

    Raises:
        UserError: the teacher is missing, cannot be read, or does not fit.
    """
    auxiliary = AUXILIARIES[cfg.LOSS.AUXILIARY](cfg, AuxiliaryInputs(model, device, names, group))
    loss = build_loss(cfg, class_counts)
    objective = Objective(
        loss,
        auxiliary.term,
        head=_build_head(cfg, model, loss, group),
        loss_weight=auxiliary.loss_weight,
        auxiliary_weight=auxiliary.weight,
    )
    return objective.to(device.main)


def _build_head(cfg: Config, model: Recognizer, loss: WeightedLoss, group: ProcessGroup) -> Head:
    if not is_chunked(cfg):
        return WholeHead(loss, with_margins=cfg.TRAIN.TRACK_SAMPLES)
    return ChunkedHead(
        model,
        loss,
        chunk_images=cfg.LOSS.CHUNK_IMAGES,
        sampled_fraction=cfg.LOSS.SAMPLED_CLASSES,
        group=group if cfg.MODEL.CLASSIFIER_SHARDED else SINGLE_PROCESS,
        with_margins=cfg.TRAIN.TRACK_SAMPLES,
    )


def _teacher(cfg: Config, device: Device, num_classes: int, names: Sequence[str]) -> Recognizer:
    path = cfg.LOSS.TEACHER
    checkpoint = _read_teacher(path)
    if checkpoint.num_classes != num_classes:
        raise UserError(
            f'LOSS.TEACHER {path} has {checkpoint.num_classes} classes, but the training set has {num_classes}: '
            'give a teacher that was trained on the same classes'
        )
    if names and checkpoint.training_set and class_names(checkpoint) != list(names):
        differing = [pair for pair in zip(class_names(checkpoint), names, strict=True) if pair[0] != pair[1]]
        theirs, ours = differing[0]
        raise UserError(
            f'LOSS.TEACHER {path} has other classes, or the same in another order ({theirs} where the training set '
            f'has {ours}): give a teacher that was trained on the same annotations'
        )
    # The teacher gets the student's images.
    sizes = {'INPUT.SIZE': cfg.INPUT.SIZE, 'INPUT.TEST_SIZE': 0, 'INPUT.SIZE_SCHEDULE': cfg.INPUT.SIZE_SCHEDULE}
    teacher_cfg = merge_checkpoint_config(checkpoint.config, path, sizes)
    _check_images(cfg, teacher_cfg, path)
    try:
        teacher = model_of(checkpoint, teacher_cfg, device)
    except UserError as error:
        raise UserError(f'LOSS.TEACHER {path}: {error}') from None
    # The teacher runs in training, so it has the precision of training.
    teacher.eval_dtype = device.train_dtype
    LOGGER.info('teacher: %s, %s', path, teacher_cfg.MODEL.BACKBONE)
    return teacher


def _read_teacher(path: str) -> Checkpoint:
    if not Path(path).is_file():
        raise UserError(f'LOSS.TEACHER {path}: no such file')
    checkpoint = read_checkpoint(path, option='LOSS.TEACHER')
    if not checkpoint.config:
        raise UserError(
            f'LOSS.TEACHER {path} holds no config, so its architecture is unknown: fine-tune it once with main.py'
        )
    return checkpoint


def _check_images(cfg: Config, teacher_cfg: Config, path: str) -> None:
    for name in _SAME_IMAGES:
        section, leaf = name.split('.')
        ours, theirs = cfg[section][leaf], teacher_cfg[section][leaf]
        if ours != theirs:
            value = ','.join(map(str, theirs)) if isinstance(theirs, tuple) else theirs
            raise UserError(
                f'LOSS.TEACHER {path} was trained with {name} {theirs}, but gets images of {ours}: '
                f'--{section}_{leaf} {value}'
            )
