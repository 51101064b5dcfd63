"""MODEL.PRETRAINED -> the weights of a backbone, also those that the checkpoints of a tuned backbone do not contain."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from lib.backbone.adapters import is_adapter, merge_adapters
from lib.backbone.create import create_backbone, published_weights
from lib.backbone.pretrained import Fit, load_pretrained
from lib.backbone.tuning import DEFAULT_RANK, BaseWeights
from lib.builders.cache_key import weights_fingerprint
from lib.config.defaults import Config
from lib.config.yaml_text import as_node, as_values
from lib.errors import UserError
from lib.model import Recognizer
from lib.runtime.log import LOGGER
from lib.trainer.checkpointing.state import Checkpoint

_PREFIX = 'backbone.'
Tensors = dict[str, torch.Tensor]


def load_base(backbone: nn.Module, cfg: Config, *, log: bool = True) -> Fit:
    """Load the weights of MODEL.PRETRAINED into a backbone for images of INPUT.SIZE, and log what they are.

    Args:
        log: False: log warnings only.

    Raises:
        UserError: there are no such weights, or they do not fit.
    """
    path = Path(cfg.MODEL.PRETRAINED)
    if cfg.MODEL.PRETRAINED == 'timm':
        path, license_name = published_weights(cfg.MODEL.BACKBONE)
        if log:
            LOGGER.info('%s: weights from timm, license %s', cfg.MODEL.BACKBONE, license_name)
    fit = load_pretrained(backbone, path, cfg.MODEL.BACKBONE, cfg.INPUT.SIZE)
    for line in fit.lines() if log or fit.missing else ():
        LOGGER.log(logging.WARNING if fit.missing else logging.INFO, '%s: %s', path.name, line)
    return fit


def identify_base(model: Recognizer, cfg: Config, fit: Fit) -> BaseWeights:
    """Return the identity of the constant weights of a tuned recognizer, whose backbone `load_base` has loaded."""
    constant = {name.removeprefix(_PREFIX) for name in model.constant_names()}
    state = {name: value for name, value in model.backbone.state_dict().items() if name in constant}
    return BaseWeights(cfg.MODEL.BACKBONE, cfg.MODEL.PRETRAINED, cfg.INPUT.SIZE, _digest(state, fit))


def describe_tuning(model: Recognizer, cfg: Config) -> list[str]:
    """Return lines for the log on the trained part of a model and its checkpoints; [] if all is trained."""
    options, head_epochs = cfg.MODEL, cfg.TRAIN.HEAD_EPOCHS
    lines = [f'TRAIN.HEAD_EPOCHS {head_epochs}: the backbone is constant until then'] if head_epochs else []
    if options.TUNE == 'full':
        return lines
    num_ranks = model.classifier.num_classes / len(model.classifier.classes)  # of rows that other ranks hold
    counts = [
        (round(parameter.numel() * (num_ranks if name.startswith('classifier.') else 1)), parameter.requires_grad)
        for name, parameter in model.named_parameters()
    ]
    total, trained = sum(number for number, _ in counts), sum(number for number, is_trained in counts if is_trained)
    rank = f', rank {options.TUNE_RANK or DEFAULT_RANK[options.TUNE]}' if options.TUNE in DEFAULT_RANK else ''
    percent = f'{100 * trained / total:.2g}%'
    lines += [f'MODEL.TUNE {options.TUNE}{rank}: {trained:,} of {total:,} parameters are trained ({percent})']
    if options.TUNE != 'head':
        if model.base is not None:
            lines.append('checkpoints contain these, and the digest of the others')
        elif cfg.TRAIN.SAVE_WEIGHTS == 'tuned':
            lines.append('checkpoints contain all weights: the others are not in a file')
    return lines


def complete_state(checkpoint: Checkpoint, cfg: Config) -> Tensors:
    """Return the state_dict of a checkpoint with all weights: those that it lacks are loaded from MODEL.PRETRAINED.

    Raises:
        UserError: there are no such weights, or they are not those that the run started with.
    """
    base = checkpoint.base
    if base is None:
        return checkpoint.state_dict
    source = cfg.MODEL.PRETRAINED or base.pretrained
    cfg = as_node(
        as_values(cfg)
        | {'MODEL.BACKBONE': base.backbone, 'MODEL.PRETRAINED': source, 'INPUT.SIZE': base.image_size}
    )  # fmt: skip
    needs = f'{checkpoint.path} contains only the weights that MODEL.TUNE trained, and needs those of its base: '
    try:
        backbone = create_backbone(base.backbone, image_size=base.image_size, allow_download=source == 'timm')
        fit = load_base(backbone, cfg, log=False)
    except UserError as error:
        raise UserError(f'{needs}{error}') from None
    constant = {
        name: value for name, value in backbone.state_dict().items() if _PREFIX + name not in checkpoint.state_dict
    }
    if _digest(constant, fit) != base.digest:
        raise UserError(
            f'{needs}MODEL.PRETRAINED {source} has other weights than MODEL.PRETRAINED {base.pretrained} had when the '
            'run started: set --MODEL_PRETRAINED to a copy of that file'
        )
    return {**{_PREFIX + name: value for name, value in constant.items()}, **checkpoint.state_dict}


def _digest(constant: Tensors, fit: Fit) -> str:
    return weights_fingerprint({name: value for name, value in constant.items() if name not in fit.resampled})


def check_adapters(backbone: nn.Module, state: Mapping[str, torch.Tensor], path: Path | None, cfg: Config) -> None:
    """Raise UserError if a state of the backbone has other adapters than the backbone, or of another rank."""
    if _adapters(state) != _adapters(backbone.state_dict()):
        rank = f', MODEL.TUNE_RANK {cfg.MODEL.TUNE_RANK}' if cfg.MODEL.TUNE in ('lora', 'adaptformer') else ''
        raise UserError(
            f'{path} was trained with another MODEL.TUNE or MODEL.TUNE_RANK than MODEL.TUNE {cfg.MODEL.TUNE}{rank}: '
            'set both as in its training, or start another run from it with --RESUME_MODE finetune'
        )


def with_adapters_of(backbone: nn.Module, state: Tensors, path: Path | None, cfg: Config) -> Tensors:
    """Return a state of a backbone with the adapters of `backbone`: other adapters are merged into the weights first.

    Raises:
        UserError: AdaptFormer cannot be merged.
    """
    own = backbone.state_dict()
    if _adapters(state) == _adapters(own):
        return state
    merged = merge_adapters(state)
    if _adapters(merged):
        raise UserError(
            f'{path} was trained with MODEL.TUNE adaptformer, which cannot be merged into the weights, so MODEL.TUNE '
            f'{cfg.MODEL.TUNE} cannot start from it: set --MODEL_TUNE adaptformer and its MODEL.TUNE_RANK'
        )
    return merged | {name: value for name, value in own.items() if is_adapter(name)}


def _adapters(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items() if is_adapter(name)}
