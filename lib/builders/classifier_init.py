"""MODEL.CLASSIFIER_INIT -> initial classifier rows from the training images or the class names."""

from collections.abc import Sequence

import torch

from lib.builders.loader import build_eval_loader
from lib.builders.split import DatasetSplit, TrainingData
from lib.classifier.cosine import CosineClassifier, text_rows
from lib.classifier.linear import LinearClassifier
from lib.config.defaults import Config
from lib.dataset.features import Features
from lib.dataset.index import ClassIndex
from lib.errors import UserError
from lib.inference.engine import EagerEngine, HeadEngine
from lib.model import Recognizer
from lib.posthoc.class_means import class_means, nearest_mean
from lib.runtime.device import Device
from lib.runtime.log import LOGGER


def init_classifier(
    cfg: Config,
    model: Recognizer,
    data: TrainingData,
    index: ClassIndex,
    device: Device,
    features: Sequence[Features] = (),
) -> None:
    """Initialize the classifier of `model`, which has its other weights, with class means or from class names.

    With stored `features` of the training images, one per view, class means are those of the first view.

    Raises:
        UserError: none of the images can be decoded; the classes have no names; the text encoder does not fit.
    """
    if cfg.MODEL.CLASSIFIER_INIT == 'class_means':
        start_from_class_means(cfg, model, data.train, index, device, features[0] if features else None)
    elif cfg.MODEL.CLASSIFIER_INIT == 'text':
        _start_from_text(cfg, model, data.classes.names if data.classes else (), device)


def _start_from_text(cfg: Config, model: Recognizer, names: Sequence[str], device: Device) -> None:
    if not names:
        raise UserError(
            'MODEL.CLASSIFIER_INIT text needs class names: write them to classes.json beside DATASET.TRAIN_JSON, or '
            '--MODEL_CLASSIFIER_INIT class_means'
        )
    rows = text_rows(
        names, model.num_features, model=cfg.MODEL.TEXT_MODEL, prompt=cfg.MODEL.TEXT_PROMPT, device=device.main
    )
    with torch.no_grad():
        model.classifier.weight.copy_(rows[_held(model)])
    LOGGER.info('classifier: rows from class names, such as "%s"', cfg.MODEL.TEXT_PROMPT.replace('{}', names[0]))


def _held(model: Recognizer) -> slice:
    """Return the classes whose rows the classifier holds."""
    return slice(model.classifier.classes.start, model.classifier.classes.stop)


def start_from_class_means(
    cfg: Config,
    model: Recognizer,
    split: DatasetSplit,
    index: ClassIndex,
    device: Device,
    features: Features | None = None,
) -> None:
    """Initialize the classifier of `model` with the mean features of the training images (NCM: Kang et al., ICLR 2020).

    A cosine classifier gets the means of unit-length features, a linear classifier the weights whose largest logit is
    that of the nearest mean. Only training images count: none beyond DATASET.HEAD_CAP, and none in quarantine. In a
    cosine classifier a class without images has a row of zeros, so its logit is always 0.

    Raises:
        UserError: none of the images can be decoded.
    """
    classifier = model.classifier
    is_cosine = isinstance(classifier, CosineClassifier)
    loader = build_eval_loader(cfg, split, device, features=features)
    engine = EagerEngine(model) if features is None else HeadEngine(model)
    try:
        means, counts = class_means(engine, loader, index.rows, num_classes=split.num_classes, unit_length=is_cosine)
    except ValueError:
        raise UserError(
            f'{split.source}: no training image can be decoded: check DATASET.ROOT{split.heic_hint}'
        ) from None
    weight, bias = (means, None) if is_cosine else nearest_mean(means, counts)
    with torch.no_grad():
        classifier.weight.copy_(weight[_held(model)])
        if bias is not None:
            assert isinstance(classifier, LinearClassifier)
            classifier.bias.copy_(bias[_held(model)])
