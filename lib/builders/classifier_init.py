"""MODEL.CLASSIFIER_INIT class_means in the config -> the rows that a classifier starts fine-tuning with."""

import torch
from yacs.config import CfgNode

from lib.builders.loader import build_eval_loader
from lib.builders.split import Split
from lib.classifier.cosine import Cosine
from lib.dataset.index import ProductIndex
from lib.errors import UserError
from lib.model import Recognizer
from lib.posthoc.class_means import class_means, nearest_mean
from lib.runtime.device import Device


def start_from_class_means(cfg: CfgNode, model: Recognizer, split: Split, index: ProductIndex, device: Device) -> None:
    """Put the mean features of the training images into the classifier of `model` (NCM: Kang et al., ICLR 2020).

    A cosine classifier gets the means of features of length 1, a linear one what prefers the nearest mean. Only images
    that are trained on count: neither those beyond DATASET.HEAD_CAP, nor quarantined ones. In a cosine classifier a
    class without images has a row of zeros, so its logit is always 0.

    Raises:
        UserError: none of the images can be decoded.
    """
    classifier = model.classifier
    is_cosine = isinstance(classifier, Cosine)
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
