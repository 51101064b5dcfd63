"""MODEL.CLASSIFIER_INIT -> initial classifier rows from the training images or the class names."""

from collections.abc import Sequence
from pathlib import Path

import torch

from lib.backbone.hub import download_from_hub, download_url
from lib.builders.engine import build_engine
from lib.builders.loader import build_eval_loader
from lib.builders.split import DatasetSplit
from lib.builders.training_data import TrainingData
from lib.classifier.cosine import CosineClassifier, import_open_clip, text_rows
from lib.classifier.linear import LinearClassifier
from lib.config.defaults import Config
from lib.dataset.features import Features
from lib.dataset.index import ClassIndex
from lib.distributed.process_group import SINGLE_PROCESS
from lib.errors import UserError, shown
from lib.inference.engine import Engine, HeadEngine
from lib.model import Recognizer
from lib.posthoc.class_means import class_means, nearest_mean
from lib.runtime.device import Device
from lib.runtime.log import LOGGER

_CLIP_FILES = ('open_clip_model.safetensors', 'open_clip_pytorch_model.bin')  # as open_clip names them on the hub


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
    name, weights = text_weights(cfg.MODEL.TEXT_MODEL)
    prompt = cfg.MODEL.TEXT_PROMPT
    rows = text_rows(names, model.num_features, model=name, weights=weights, prompt=prompt, device=device.main)
    with torch.no_grad():
        model.classifier.weight.copy_(rows[_held(model)])
    LOGGER.info('classifier: rows from class names, such as "%s"', prompt.replace('{}', names[0]))


def text_weights(text_model: str) -> tuple[str, Path]:
    """Return the name and the weights file of MODEL.TEXT_MODEL, which is downloaded for a tag of open_clip.

    Raises:
        UserError: open_clip is not installed or does not know them; the server does not answer.
    """
    open_clip = import_open_clip()
    name, _, weights = text_model.partition(':')
    tags = open_clip.list_pretrained_tags_by_model(name)
    if name not in open_clip.list_models() or (weights not in tags and not Path(weights).is_file()):
        tags_text = f'; {name} has {", ".join(tags)}' if tags else ''
        raise UserError(
            f'MODEL.TEXT_MODEL is {shown(text_model)}, but must be a model of open_clip, a colon, and a tag or a file '
            f'of its weights, such as ViT-B-16:openai{tags_text}'
        )
    if weights not in tags:
        return name, Path(weights)
    published = open_clip.get_pretrained_cfg(name, weights)
    if not published.get('hf_hub'):
        return name, download_url(published['url'])
    owner, repository, file = [*published['hf_hub'].split('/'), ''][:3]
    return name, download_from_hub(f'{owner}/{repository}', (file,) if file else _CLIP_FILES)


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
    engine: Engine = HeadEngine(model)
    if features is None:
        folder = Path(cfg.LOG_ROOT)  # before there is a run folder
        engine = build_engine(
            cfg, model, device, SINGLE_PROCESS, num_images=len(split), folder=folder, is_training=True
        )
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
