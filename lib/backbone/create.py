"""Create backbones by name: those of timm, the names of old configs, and the CIFAR ResNet-32.

timm is imported in the functions that use it, here and in other files: that takes seconds, which commands without a
backbone do not need, and a mistake in the data ends a command before.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lib.backbone.bundled import Preprocessing
from lib.backbone.hub import (
    HUB_PREFIXES,
    WEIGHTS_FILES,
    PublishedWeights,
    config_folder,
    download_from_hub,
    download_url,
)
from lib.backbone.resnet32 import ResNet32
from lib.errors import UserError, shown
from lib.runtime.json_file import Record, read_json

CIFAR_RESNET = 'res32_cifar'
_CHANNELS = 3

# timm's resnest50d has the original ResNeSt-50's parameter names and features, so old checkpoints load.
ALIASES = {
    'res50': 'resnet50',
    'res101': 'resnet101',
    'res152': 'resnet152',
    'resnest50': 'resnest50d',
    'resnest101': 'resnest101e',
    'resnest200': 'resnest200e',
    'resnest269': 'resnest269e',
}


def available() -> list[str]:
    """Return all names that `create_backbone` accepts: those of old configs first, then those of timm."""
    from timm import list_models

    return [*ALIASES, CIFAR_RESNET, *list_models()]


def create_backbone(name: str, *, image_size: int, allow_download: bool = False, key: str = 'INPUT.SIZE') -> nn.Module:
    """Create a backbone with random weights: (batch, 3, image_size, image_size) -> features (batch, num_features).

    Its attribute `num_features` is the width of the features. Weights are drawn from torch's global generator.

    Args:
        allow_download: accept names such as 'hf-hub:timm/resnet50.a1_in1k', whose configuration is downloaded.
        key: the config key of the image size, for error messages.

    Raises:
        UserError: unknown name; a name on a hub without `allow_download`; an unsupported image size.
    """
    if name == CIFAR_RESNET:
        return ResNet32()
    return _create_timm(name, _resolve(name, allow_download), image_size, key)


def changes_with_size(name: str) -> bool:
    """Return whether a backbone is built for one image size, so that its weights are resampled for another."""
    return name != CIFAR_RESNET and bool(_published(_resolve(name, allow_download=True)).get('fixed_input_size'))


def published_weights(name: str) -> PublishedWeights:
    """Return the weights that timm publishes for a backbone, downloaded if they are not cached.

    Raises:
        UserError: as in `create_backbone`; there are no such weights, or the download fails.
    """
    if name == CIFAR_RESNET:
        raise UserError(
            f"MODEL.PRETRAINED timm: there are no published weights for {shown(name)}; set MODEL.PRETRAINED ''"
        )
    resolved = _resolve(name, allow_download=True)
    published = _published(resolved)
    license_name = published.get('license') or 'unknown'
    repository, url = published.get('hf_hub_id'), published.get('url')
    if resolved.startswith(HUB_PREFIXES):
        repository = resolved.partition(':')[2]
    if repository:
        names = [published['hf_hub_filename']] if published.get('hf_hub_filename') else WEIGHTS_FILES
        return PublishedWeights(download_from_hub(repository, names), license_name)
    if url:
        return PublishedWeights(download_url(url), license_name)
    raise UserError(
        f'MODEL.PRETRAINED timm: timm has no weights for {shown(name)}; '
        "choose another MODEL.BACKBONE, or set MODEL.PRETRAINED to a file or ''"
    )


class PublishedPreprocessing(NamedTuple):
    """The preprocessing that timm publishes with weights.

    Attributes:
        preprocessing: preprocessing of the images.
        weights: name of these weights in timm.
        others: weights of the same architecture with another mean or standard deviation, if a file may be either; ''.
    """

    preprocessing: Preprocessing
    weights: str
    others: str = ''


def published_preprocessing(name: str, file: str = '') -> PublishedPreprocessing | None:
    """Return the preprocessing of the weights of a backbone; None if timm publishes no weights for it.

    Args:
        file: name of a weights file for it, recognized by the names that timm and torchvision give to their files;
            otherwise its weights count as timm's first ones. '': the weights that timm publishes for the name.

    Raises:
        UserError: as in `create_backbone`; the configuration of a backbone on a hub cannot be downloaded.
    """
    if name == CIFAR_RESNET:
        return None
    resolved = _resolve(name, allow_download=not file)
    architecture, _, tag = resolved.partition('.')
    is_on_hub = resolved.startswith(HUB_PREFIXES)
    known = {} if is_on_hub else {full: _published(full) for full in _pretrained(architecture)}
    is_guess = bool(file) and not tag
    if is_guess and (found := _weights_of(file, architecture, known)):
        resolved, is_guess = found, False
    published = _published(resolved)
    if len(published.get('mean') or ()) != _CHANNELS:
        return None
    weights = resolved if is_on_hub or '.' in resolved else f'{architecture}.{published.get("tag")}'
    by_statistics: dict[object, list[str]] = {}
    for full, other in known.items():
        by_statistics.setdefault((other['mean'], other['std']), []).append(full)
    by_statistics.pop((published['mean'], published['std']), None)
    others = max(by_statistics.values(), key=len, default=[''])
    return PublishedPreprocessing(_preprocessing(published), weights, others[0] if is_guess else '')


def _weights_of(file: str, architecture: str, known: Mapping[str, dict[str, Any]]) -> str:
    """Return the weights in timm that a file contains, judged by its name; '' if the name is unknown."""
    for full, published in known.items():
        if Path(file).stem == full or file == (published.get('url') or '').rpartition('/')[2]:
            return full
    # torchvision's names of older weights: resnet50-19c8e357.pth.
    torchvisions = f'{architecture}.tv_in1k'
    is_torchvisions = torchvisions in known and re.fullmatch(rf'{architecture}-[0-9a-f]{{8}}\.pth', file)
    return torchvisions if is_torchvisions else ''


def _preprocessing(published: Mapping[str, Any]) -> Preprocessing:
    return Preprocessing(
        published['input_size'][1],
        tuple(map(float, published['mean'])),
        tuple(map(float, published['std'])),
        published['crop_pct'],
        'bicubic' if published['interpolation'] == 'bicubic' else 'bilinear',
    )


def _resolve(name: str, allow_download: bool) -> str:
    """Return the name in timm's spelling; names that would download or open a file are rejected."""
    if name.startswith(HUB_PREFIXES):
        if allow_download:
            return name
        raise UserError(f'MODEL.BACKBONE {shown(name)} must be downloaded: set MODEL.PRETRAINED timm to allow that')
    from timm.models import is_model

    resolved = ALIASES.get(name, name)
    if ':' not in resolved and is_model(resolved):
        architecture, _, tag = resolved.partition('.')
        tags = {full.partition('.')[2] for full in _pretrained(architecture)}
        if not tag or tag in tags:
            return resolved
        near = [f'{architecture}.{tag}' for tag in sorted(tags)]
    else:
        near = available()
    matches = difflib.get_close_matches(name, near, n=3)
    hint = f'did you mean {" or ".join(matches)}?' if matches else 'timm.list_models() lists all'
    raise UserError(
        f'MODEL.BACKBONE {shown(name)} is unknown; '
        f'allowed are the names of timm, {", ".join(ALIASES)} and {CIFAR_RESNET}; {hint}'
    )


def _pretrained(architecture: str) -> list[str]:
    """Return timm's names of the weights of an architecture."""
    from timm import list_pretrained

    return list_pretrained(f'{architecture}.*')


def _published(resolved: str) -> dict[str, Any]:
    """Return timm's description of a backbone's weights: their image size, source and license."""
    if resolved.startswith(HUB_PREFIXES):
        config = read_json(Path(config_folder(resolved), 'config.json'), Record)
        return config.get('pretrained_cfg', config)
    from timm.models import get_pretrained_cfg

    published = get_pretrained_cfg(resolved)
    return {} if published is None else published.to_dict()


def _create_timm(name: str, resolved: str, image_size: int, key: str) -> nn.Module:
    from timm import create_model
    from timm.models import _builder

    from lib.backbone.split_attention import use_fast_split_attention  # a subclass of timm's

    published = _published(resolved)
    own_size = (published.get('input_size') or (3, 0, 0))[1]
    options: dict[str, Any] = {}
    if published.get('fixed_input_size') and own_size != image_size:
        options['img_size'] = image_size
    source = f'local-dir:{config_folder(resolved)}' if resolved.startswith(HUB_PREFIXES) else resolved
    # timm gives the function that adapts weights to a model to its loader only, which does nothing else here.
    loader, _builder.load_pretrained = _builder.load_pretrained, _remember_adapter
    try:
        backbone = create_model(source, num_classes=0, pretrained=True, **options)
    except TypeError as error:
        if not options or 'img_size' not in str(error):
            raise
        raise UserError(
            f'MODEL.BACKBONE {shown(name)} accepts only images of {own_size} px: set {key} {own_size}'
        ) from error
    except Exception as error:  # timm and the models raise many exception types
        raise UserError(f'MODEL.BACKBONE {shown(name)}: cannot be built for {image_size} px: {shown(error)}') from error
    finally:
        _builder.load_pretrained = loader
    use_fast_split_attention(backbone)
    width = measure_width(backbone, name, image_size, key)
    # The last layer of some timm models has another width than their num_features (head_hidden_size).
    if backbone.num_features != width:
        setattr(backbone, 'num_features', width)  # noqa: B010 (mypy takes attributes of modules for submodules)
    return backbone


def _remember_adapter(model: nn.Module, *_: object, filter_fn: Callable | None = None, **__: object) -> None:
    setattr(model, 'adapt_weights', filter_fn)  # noqa: B010 (mypy takes attributes of modules for submodules)


@torch.no_grad()
def measure_width(backbone: nn.Module, name: str, image_size: int, key: str = 'INPUT.SIZE') -> int:
    """Return the width of the features, measured with one image, which works for all models of timm.

    Args:
        key: the config key of the image size, for the error message.

    Raises:
        UserError: the backbone does not accept the size, or does not return one feature vector per image.
    """
    backbone.eval()
    try:
        features = backbone(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # indivisible sizes, windows that do not fit: models raise various types
        raise UserError(
            f'MODEL.BACKBONE {shown(name)} does not accept images of {key} {image_size} px: {shown(error)}'
        ) from error
    finally:
        backbone.train()
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise UserError(f'MODEL.BACKBONE {shown(name)} does not return one feature vector per image: choose another')
    return features.shape[1]


def num_features_of(backbone: nn.Module) -> int:
    """Return the width of the features of a backbone."""
    num_features = backbone.num_features
    assert isinstance(num_features, int)
    return num_features
