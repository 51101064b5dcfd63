"""MODEL in the config -> a recogniser: new, out of a checkpoint, or carried over to other classes.

MODEL.CLASSIFIER_INIT class_means in the config -> the rows that a classifier starts fine-tuning with.
"""

from collections.abc import Callable, Sequence

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from yacs.config import CfgNode

from lib.backbone.create import create_backbone, create_timm_pretrained, measure_width
from lib.backbone.pretrained import load_pretrained
from lib.builders.loader import build_eval_loader, train_sizes
from lib.builders.split import Split
from lib.classifier.cosine import CosineClassifier, Projector
from lib.classifier.linear import LearnableWeightScaling, LinearClassifier, without_scale
from lib.classifier.rows import transfer_rows
from lib.dataset.index import ClassIndex
from lib.distributed.process_group import ProcessGroup
from lib.errors import UserError
from lib.model import Recognizer
from lib.posthoc.class_means import class_means, nearest_mean
from lib.runtime.device import Device
from lib.runtime.log import LOGGER
from lib.runtime.seeding import Purpose, torch_seed
from lib.trainer.checkpointing.state import Checkpoint

# MODEL in the config, num_features, num_classes, which of the classes are held here (None: all) -> the classifier.
CLASSIFIERS: dict[str, Callable[[CfgNode, int, int, range | None], nn.Module]] = {
    'linear': lambda model, num_features, num_classes, classes: LinearClassifier(num_features, num_classes, classes=classes),
    'cosine': lambda model, num_features, num_classes, classes: CosineClassifier(
        num_features, num_classes, model.COSINE_SCALE, classes=classes
    ),
    'lws': lambda model, num_features, num_classes, classes: LearnableWeightScaling(
        num_features, num_classes, scale_only=model.FREEZE_CLASSIFIER, classes=classes
    ),
}
CLASSIFIERS['FC'], CLASSIFIERS['FCNorm'] = CLASSIFIERS['linear'], CLASSIFIERS['cosine']


def new_model(
    cfg: CfgNode, num_classes: int, device: Device, *, pretrained: bool = True, classes: range | None = None
) -> Recognizer:
    """Return a recogniser on the device, with random weights (by SEED) or those of MODEL.PRETRAINED.

    Args:
        pretrained: False when the weights will come from a checkpoint anyway.
        classes: that its classifier holds, with the rows that the whole one has; None: all.
    """
    torch.manual_seed(torch_seed(cfg.SEED, Purpose.INIT))
    source = cfg.MODEL.PRETRAINED if pretrained else ''
    if source == 'timm':
        backbone, licence = create_timm_pretrained(cfg.MODEL.BACKBONE, image_size=cfg.INPUT.SIZE)
        LOGGER.info('%s: weights from timm, licence: %s', cfg.MODEL.BACKBONE, licence)
    else:
        allow = cfg.MODEL.PRETRAINED == 'timm'
        backbone = create_backbone(cfg.MODEL.BACKBONE, image_size=cfg.INPUT.SIZE, allow_download=allow)
        if source:
            report = load_pretrained(backbone, source)
            LOGGER.log(20 if report.complete else 30, '%s: %s', source, report.summary())
    if cfg.INPUT.TEST_SIZE:
        measure_width(backbone, cfg.MODEL.BACKBONE, cfg.INPUT.TEST_SIZE, 'INPUT.TEST_SIZE')
    for size in sorted(set(train_sizes(cfg).values()) - {cfg.INPUT.SIZE}):
        measure_width(backbone, cfg.MODEL.BACKBONE, size, 'INPUT.SIZE_SCHEDULE')
    classifier = CLASSIFIERS[cfg.MODEL.CLASSIFIER](cfg.MODEL, backbone.num_features, num_classes, classes)
    compares = cfg.LOSS.AUXILIARY == 'balanced_contrastive'
    model = Recognizer(
        backbone,
        classifier,
        projector=Projector(backbone.num_features, cfg.LOSS.CONTRAST_WIDTH) if compares else None,
        train_dtype=device.train_dtype,
        eval_dtype=device.eval_dtype,
    )
    if cfg.MODEL.FREEZE_BACKBONE:
        model.freeze_backbone(shift_batchnorm=cfg.MODEL.SHIFT_BATCHNORM)
    if cfg.MODEL.SYNC_BATCHNORM and device.main.type == 'cuda':
        model.backbone = convert_sync_batchnorm(model.backbone)
    return model.to(device.main, memory_format=torch.channels_last)


def held_classes(cfg: CfgNode, num_classes: int, group: ProcessGroup) -> range | None:
    """Return the classes whose rows this rank holds in training; None: all of them."""
    if not cfg.MODEL.CLASSIFIER_SHARDED or group.world_size == 1:
        return None
    if num_classes < group.world_size:
        raise UserError(
            f'MODEL.CLASSIFIER_SHARDED True splits {num_classes} classes over {group.world_size} ranks, which leaves '
            'some with none: --MODEL_CLASSIFIER_SHARDED False'
        )
    rows = group.shard(num_classes)
    return range(rows.start, rows.stop)


def model_of(checkpoint: Checkpoint, cfg: CfgNode, device: Device, *, classes: range | None = None) -> Recognizer:
    """Return the recogniser that a checkpoint holds, or of its classifier the rows of `classes`.

    Raises:
        UserError: its weights do not fit the MODEL of the config.
    """
    model = new_model(cfg, checkpoint.num_classes, device, pretrained=False, classes=classes)
    held = checkpoint.with_rows(classes)
    _check_fit(model.state_dict(), held, cfg)
    model.load_state_dict(held.state_dict)
    return model


def finetuned_model(
    checkpoint: Checkpoint,
    cfg: CfgNode,
    device: Device,
    names: Sequence[str],
    *,
    classes: range | None = None,
) -> tuple[Recognizer, list[str]]:
    """Return a recogniser for the classes `names` with a checkpoint's weights, and the names that are new to it.

    Rows of the classifier go by class name; when the checkpoint knows no names, by number. With
    MODEL.CLASSIFIER_INIT random none is carried over: the classifier is that of a new model (by SEED).
    Its classifier holds the rows of `classes` (None: all).
    """
    checkpoint = checkpoint.with_rows()
    numbered = [names[row] if row < len(names) else '' for row in range(checkpoint.num_classes)]
    trained_names = (checkpoint.training_set.class_names if checkpoint.training_set else []) or numbered
    model = new_model(cfg, len(names), device, pretrained=False, classes=classes)
    held = names if classes is None else names[classes.start : classes.stop]
    fresh, found = model.state_dict(), checkpoint.state_dict
    new_classifier, trained = _part(fresh, 'classifier.'), _part(found, 'classifier.')
    if 'scale' not in new_classifier:
        trained = without_scale(trained)
    carried, _ = transfer_rows(
        {key: value.cpu() for key, value in new_classifier.items()}, trained, held, trained_names
    )
    classifier = new_classifier if cfg.MODEL.CLASSIFIER_INIT == 'random' else carried
    projector = _part(fresh, 'projector.')
    if _shapes(projector) == _shapes(_part(found, 'projector.')):
        projector = _part(found, 'projector.')
    state = {key: value for key, value in found.items() if not key.startswith(('classifier.', 'projector.'))}
    state |= {f'classifier.{key}': value for key, value in classifier.items()}
    state |= {f'projector.{key}': value for key, value in projector.items()}
    _check_fit(fresh, Checkpoint(state, path=checkpoint.path), cfg)
    model.load_state_dict(state)
    known = set(trained_names)
    return model, [name for name in names if name not in known]


def _part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def class_names(checkpoint: Checkpoint) -> list[str]:
    """Return the names of a checkpoint's classes; their numbers where it has none."""
    known = checkpoint.training_set.class_names if checkpoint.training_set else []
    return known or [str(label) for label in range(checkpoint.num_classes)]


def _check_fit(own: dict[str, torch.Tensor], checkpoint: Checkpoint, cfg: CfgNode) -> None:
    found = checkpoint.state_dict
    if 'classifier.bias' in own and 'classifier.bias' not in found:
        raise UserError(
            f'{checkpoint.path}: its classifier has no bias, so it is a cosine one; '
            f'MODEL.CLASSIFIER is {cfg.MODEL.CLASSIFIER}: try --MODEL_CLASSIFIER FCNorm'
        )
    missing, unknown = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    shapes = [key for key in own.keys() & found.keys() if own[key].shape != found[key].shape]
    if missing or unknown or shapes:
        example = (missing + unknown + sorted(shapes))[0]
        raise UserError(
            f'{checkpoint.path} does not fit MODEL.BACKBONE {cfg.MODEL.BACKBONE} with MODEL.CLASSIFIER '
            f'{cfg.MODEL.CLASSIFIER}: {len(missing)} parameters are missing, {len(unknown)} unknown, {len(shapes)} of '
            f'another shape, {example} for one'
        )


def start_from_class_means(cfg: CfgNode, model: Recognizer, split: Split, index: ClassIndex, device: Device) -> None:
    """Put the mean features of the training images into the classifier of `model` (NCM: Kang et al., ICLR 2020).

    A cosine classifier gets the means of features of length 1, a linear one what prefers the nearest mean. Only images
    that are trained on count: neither those beyond DATASET.HEAD_CAP, nor quarantined ones. In a cosine classifier a
    class without images has a row of zeros, so its logit is always 0.

    Raises:
        UserError: none of the images can be decoded.
    """
    classifier = model.classifier
    is_cosine = isinstance(classifier, CosineClassifier)
    loader = build_eval_loader(cfg, split, device)
    try:
        means, counts = class_means(model, loader, index.rows, num_classes=split.num_classes, unit_length=is_cosine)
    except ValueError:
        raise UserError(f'{split.source}: not one training image can be decoded, so classes have no means') from None
    weight, bias = (means, None) if is_cosine else nearest_mean(means, counts)
    with torch.no_grad():
        classifier.weight.copy_(weight)
        if bias is not None:
            classifier.bias.copy_(bias)
